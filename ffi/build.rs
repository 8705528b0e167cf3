//! Finds Xen's libraries by pkg-config and generates the bindings from their installed headers.
//!
//! Trying other headers than the installed ones, without changing the system: put that release's `tools/include`,
//! `xen/include/public` (as `xen/`) and `tools/include/xen-sys/Linux` (as `xen/sys/`) in one folder, copy the `xen*.pc`
//! files with `includedir` and `Version` changed to it, and run
//! `PKG_CONFIG_PATH=that-folder cargo check -p ffi --tests --target-dir elsewhere` (4.18, 4.19 and 4.20 were).

use std::env;
use std::path::PathBuf;

/// Oldest release whose calls and layouts this crate knows (`major.minor`).
const OLDEST: (u32, u32) = (4, 17);
/// Releases that get a `xen_4_NN` cfg ("this one or newer"), for the few calls that differ: see `src/compat.rs`.
const MILESTONES: [u32; 3] = [18, 19, 20];
/// pkg-config names. The first two change with every release; the others have a stable interface.
const LIBRARIES: [&str; 8] = [
    "xencontrol",
    "xenguest",
    "xenevtchn",
    "xenforeignmemory",
    "xengnttab",
    "xendevicemodel",
    "xentoolcore",
    "xentoollog",
];

/// Functions the safe layers call. Types and constants they need follow by themselves, or are in `TYPES`, `VARS`.
const FUNCTIONS: &str = "xc_interface_(open|close)|xc_version|xc_physinfo|xc_cputopoinfo|xc_getcpuinfo|\
    xc_domain_(getinfolist|create|max_vcpus|setmaxmem|set_memmap_limit|set_tsc_info|set_time_offset|pause|unpause|\
    destroy|shutdown|resume|sethandle|claim_pages|send_trigger|set_pod_target|get_pod_target|set_memory_map|\
    node_setaffinity|save|restore)|\
    xc_(set|get)_paging_mempool_size|xc_evtchn_alloc_unbound|xc_cpuid_apply_policy|xc_hvm_param_(set|get)|\
    xc_vcpu_(getinfo|setaffinity|getaffinity)|xc_get_(max_cpus|online_cpus|max_nodes|cpumap_size|cpu_featureset)|\
    xc_sched_id|xc_sched_credit2?_domain_(set|get)|xc_readconsolering|xc_send_debug_keys|xc_shadow_control|\
    xc_(get|clear)_last_error|\
    xc_dom_(loginit|allocate|release|kernel_mem|module_mem|kernel_max_size|module_max_size|boot_xen_init|\
    parse_image|mem_init|boot_mem_init|build_image|boot_image|gnttab_init|translated|pfn_to_ptr)|\
    xenevtchn_.*|xenforeignmemory_.*|xengnttab_.*|xendevicemodel_.*|xentoolcore_restrict_all|xtl_log|xs_.*|vsnprintf";
const TYPES: &str = "xen_domctl_.*|xc_dom_image|xentoollog_.*|hvm_info_table|xen_compile_info.*|\
    xen_extraversion_t|xen_capabilities_info_t|xen_changeset_info_t|xen_commandline_t|xc_error_code|xc_open_flags|xs_permissions";
const VARS: &str = "XEN_DOMCTL_CDF_.*|XEN_DOMCTL_IOMMU_.*|XEN_DOMINF_.*|XEN_DOMCTL_SENDTRIGGER_.*|XEN_X86_.*|\
    XEN_SYSCTL_PHYSCAP_.*|XEN_SYSCTL_cpu_featureset_.*|XEN_SCHEDULER_.*|XEN_VCPUAFFINITY_.*|XENVER_.*|\
    XEN_DOMCTL_INTERFACE_VERSION|XEN_SYSCTL_INTERFACE_VERSION|XEN_DOMCTL_SHADOW_OP_.*|XEN_DOMCTL_GRANT_.*|\
    FFI_.*|HVM_PARAM_.*|HVM_INFO_.*|HVM_MAX_VCPUS|XC_.*|XG_MAX_MODULES|SHUTDOWN_.*|VIRQ_.*|\
    XTL_.*|XS_.*|XCFLAGS_.*|XGS_POLICY_.*|XGR_SDD_.*|XBT_NULL|MAX_GUEST_CMDLINE|X86_HVM_.*|XENMEM_resource_.*|PROT_.*|E820_.*";

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-changed=build.rs");
    for minor in MILESTONES {
        println!("cargo::rustc-check-cfg=cfg(xen_4_{minor})");
    }

    let with_store = env::var_os("CARGO_FEATURE_LIBXENSTORE").is_some();
    let mut includes: Vec<PathBuf> = Vec::new();
    let mut version = String::new();
    for name in LIBRARIES.into_iter().chain(with_store.then_some("xenstore")) {
        let library = pkg_config::Config::new().probe(name).unwrap_or_else(|e| {
            panic!(
                "{name} was not found by pkg-config. Install the Xen development files and pkg-config: on Debian \
                 `apt install libxen-dev pkg-config libclang-dev`.\n{e}"
            )
        });
        if name == "xencontrol" {
            version.clone_from(&library.version);
        }
        includes.extend(library.include_paths);
    }
    includes.sort();
    includes.dedup();

    let (major, minor) = parse_version(&version);
    assert!(
        (major, minor) >= OLDEST,
        "libxenctrl {version} is too old: {}.{} or newer is needed (Debian 12's libxen-dev is 4.17)",
        OLDEST.0,
        OLDEST.1
    );
    for milestone in MILESTONES.into_iter().filter(|m| (major, minor) >= (4, *m)) {
        println!("cargo::rustc-cfg=xen_4_{milestone}");
    }
    println!("cargo::rustc-env=XEN_LINKED_MAJOR={major}");
    println!("cargo::rustc-env=XEN_LINKED_MINOR={minor}");

    generate(&includes, with_store);
}

/// "4.17.0" as numbers.
fn parse_version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => panic!("pkg-config gave xencontrol the version {text:?}, which is not MAJOR.MINOR"),
    }
}

fn generate(includes: &[PathBuf], with_store: bool) {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(includes.iter().map(|p| format!("-I{}", p.display())))
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        .allowlist_var(VARS)
        // Deprecated names for the same calls.
        .blocklist_function("xs_daemon_.*|xs_domain_open|xs_debug_command")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .layout_tests(true)
        .derive_default(false)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    if with_store {
        builder = builder.clang_arg("-DWITH_LIBXENSTORE");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    builder
        .generate()
        .expect("bindgen failed on Xen's headers: is libclang installed (Debian: libclang-dev)?")
        .write_to_file(&out)
        .expect("writing the bindings into OUT_DIR");
}
