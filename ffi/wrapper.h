/* What bindgen reads. libxenctrl's header must come first: xenguest.h and the public headers rely on it. */
#include <stdio.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>
#include <xendevicemodel.h>
#include <xentoolcore.h>
#include <xentoollog.h>
#include <xen/hvm/params.h>
#include <xen/hvm/hvm_info_table.h>
#include <xen/hvm/e820.h>
#ifdef WITH_LIBXENSTORE
#include <xenstore.h>
#endif

/* Constants whose macros bindgen cannot evaluate (they paste or cast). */
static const uint32_t FFI_DOMID_FIRST_RESERVED = DOMID_FIRST_RESERVED;
static const uint32_t FFI_INVALID_MAX_VCPU_ID = XEN_INVALID_MAX_VCPU_ID;
