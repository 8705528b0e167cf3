/*
 * Preloaded into the QEMU that the nested host runs in.
 *
 * QEMU 7.2's emulation of `mov %reg, %cr8` in a guest of the guest calls tcg_handle_interrupt() without the big lock when
 * an interrupt waits (target/i386/tcg/sysemu/misc_helper.c), which ends QEMU with an assertion. UEFI firmware does that at
 * the end of each of its interrupts. Here the lock is taken around the call, as QEMU's other callers do.
 *
 * The function is in a module that refers to it through its symbol table, so that this one is found before it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct CPUState CPUState;
typedef void Handler(CPUState *, int);

/* QEMU's own; not there in the programs that start it. */
extern bool qemu_mutex_iothread_locked(void) __attribute__((weak));
extern void qemu_mutex_lock_iothread_impl(const char *file, int line) __attribute__((weak));
extern void qemu_mutex_unlock_iothread(void) __attribute__((weak));

static int find(struct dl_phdr_info *object, size_t size, void *found)
{
    const char *name = strrchr(object->dlpi_name, '/');
    void *module;

    (void)size;
    if (!name || strcmp(name, "/accel-tcg-x86_64.so"))
        return 0;
    module = dlopen(object->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (module)
        *(Handler **)found = (Handler *)dlsym(module, "tcg_handle_interrupt");
    return 1;
}

/* Called first before there is a second processor, so without a race. */
static Handler *original(void)
{
    static Handler *handler;

    if (!handler)
        dl_iterate_phdr(find, &handler);
    if (!handler)
        abort();
    return handler;
}

void tcg_handle_interrupt(CPUState *cpu, int mask)
{
    bool held = qemu_mutex_iothread_locked();

    if (!held)
        qemu_mutex_lock_iothread_impl(__FILE__, __LINE__);
    original()(cpu, mask);
    if (!held)
        qemu_mutex_unlock_iothread();
}
