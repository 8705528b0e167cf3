/*
 * Lets Debian's xenstored and oxenstored run on a machine without Xen, for tests: preloaded, it answers for the
 * hypervisor.
 *
 * All state is in files below $SHIM_DIR, which a test reads and writes to play a guest:
 *
 *   xsd_kva, xsd_port   dom0's own ring and port (never used; clients come by the socket)
 *   ring-D              the page that domain D shares with the daemon; a file, so that both see each other's writes
 *   to-daemon           FIFO: the number of an event channel, 32 bits, each time a guest notifies the daemon
 *   from-daemon         FIFO: the same in the other direction; a zero once the daemon listens
 *   socket              where the daemon listens
 *
 * Every domain below 0x7ff0 exists, and its event channel is 1000 plus its number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenctrl.h>

#define FIRST_PORT 1000

static const char *in_dir(const char *name)
{
    static char path[2][200];
    static int turn;
    char *p = path[turn ^= 1];
    const char *dir = getenv("SHIM_DIR");
    snprintf(p, sizeof path[0], "%s/%s", dir ? dir : "/nonexistent", name);
    return p;
}

static int fifo(const char *name)
{
    return open(in_dir(name), O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

static void *ring(uint32_t domid)
{
    char name[32];
    snprintf(name, sizeof name, "ring-%u", domid);
    int fd = open(in_dir(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 4096) < 0)
        return NULL;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

/* libxenctrl */

xc_interface *xc_interface_open(xentoollog_logger *a, xentoollog_logger *b, unsigned flags) { return (void *)16; }
int xc_interface_close(xc_interface *xch) { return 0; }

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned max, xc_dominfo_t *info)
{
    memset(info, 0, sizeof *info);
    info->domid = first;
    return first < 0x7ff0 ? 1 : 0;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned max, xc_domaininfo_t *info)
{
    memset(info, 0, sizeof *info);
    info->domain = first;
    return first < 0x7ff0 ? 1 : 0;
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t dom, int size, int prot, unsigned long mfn) { return ring(dom); }

/* libxengnttab */

typedef struct xengntdev_handle xengnttab_handle;
xengnttab_handle *xengnttab_open(struct xentoollog_logger *l, unsigned flags) { return (void *)16; }
int xengnttab_close(xengnttab_handle *h) { return 0; }
int xengnttab_set_max_grants(xengnttab_handle *h, uint32_t n) { return 0; }
void *xengnttab_map_grant_ref(xengnttab_handle *h, uint32_t domid, uint32_t ref, int prot) { return ring(domid); }
int xengnttab_unmap(xengnttab_handle *h, void *page, uint32_t count) { return munmap(page, 4096); }

/* libxenevtchn */

typedef struct xenevtchn_handle xenevtchn_handle;
static int incoming = -1, outgoing = -1;

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *l, unsigned flags)
{
    incoming = fifo("to-daemon");
    outgoing = fifo("from-daemon");
    return (void *)16;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *l, int fd, unsigned flags) { return xenevtchn_open(l, flags); }
int xenevtchn_close(xenevtchn_handle *h) { return 0; }
int xenevtchn_fd(xenevtchn_handle *h) { return incoming; }
int xenevtchn_bind_virq(xenevtchn_handle *h, unsigned virq) { return 1; }
int xenevtchn_bind_interdomain(xenevtchn_handle *h, uint32_t domid, uint32_t port) { return FIRST_PORT + domid; }
int xenevtchn_unbind(xenevtchn_handle *h, uint32_t port) { return 0; }
int xenevtchn_unmask(xenevtchn_handle *h, uint32_t port) { return 0; }
int xenevtchn_notify(xenevtchn_handle *h, uint32_t port) { return write(outgoing, &port, 4) == 4 ? 0 : -1; }

int xenevtchn_pending(xenevtchn_handle *h)
{
    uint32_t port;
    return read(incoming, &port, sizeof port) == sizeof port ? (int)port : -1;
}

/* libc: what the daemons would take from or do to the machine */

int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) { return 0; }
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) { return 0; }

static const char *moved(const char *path)
{
    const char *proc = "/proc/xen/";
    return strncmp(path, proc, strlen(proc)) ? path : in_dir(path + strlen(proc));
}

int open64(const char *path, int flags, ...)
{
    static int (*real)(const char *, int, ...);
    va_list args;
    va_start(args, flags);
    int mode = va_arg(args, int);
    va_end(args);
    if (!real)
        real = dlsym(RTLD_NEXT, "open64");
    return real(moved(path), flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    static int (*real)(int, const struct sockaddr *, socklen_t);
    struct sockaddr_un moved_to = { .sun_family = AF_UNIX };
    if (!real)
        real = dlsym(RTLD_NEXT, "bind");
    if (address->sa_family != AF_UNIX)
        return real(fd, address, length);
    snprintf(moved_to.sun_path, sizeof moved_to.sun_path, "%.100s", in_dir("socket"));
    return real(fd, (struct sockaddr *)&moved_to, sizeof moved_to);
}

int listen(int fd, int backlog)
{
    static int (*real)(int, int);
    uint32_t ready = 0;
    if (!real)
        real = dlsym(RTLD_NEXT, "listen");
    int result = real(fd, backlog);
    int out = fifo("from-daemon");
    if (write(out, &ready, sizeof ready) != sizeof ready)
        abort();
    close(out);
    return result;
}
