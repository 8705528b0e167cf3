//! From the contract's calls to what the daemon does: the one table of methods.
//!
//! Calls that only look are answered by a few call threads; calls that do something become operations on their VM's
//! queue and answer with a task; `UPDATES.get` is parked in the change feed. No call ever occupies the socket thread for
//! longer than a look into memory.
//!
//! ```text
//!   socket thread ──► call threads ──► answer
//!         ├── of tasks, from memory ──► answer
//!         │                 └────────► operation queued, its task's id is the answer
//!         ├── consoles ──► call threads ──► a session's thread
//!         └── UPDATES.get ──► change feed ──► answer when something changes
//! ```

mod console;
mod debug;
mod devices;
mod diagnostics;
mod vm;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use crate::api::value::{ToValue, Value};
use crate::api::{
    Call, DynamicId, Error, Int, Method, Pci, Query, UpdatesGet, Vbd, Vgpu, Vif, VmImportMetadata, VmRemove,
    Vusb,
};
use crate::core::{Core, Observer, Operation, VifWish, Wish, debug_info};
use crate::domain::metadata;
use crate::hostinfo;
use crate::ops::updates::UpdatesError;
use crate::rpc::console::{ConsoleCall, Consoles};
use crate::rpc::server::{self, Responder};
use waiting::Waiting;

/// Threads that answer calls which only look. Each may block on the hypervisor or the store for milliseconds.
const CALL_THREADS: usize = 2;

/// Calls waiting for such a thread; more are refused, so that a flood costs its sender and nobody else.
const MAX_WAITING_CALLS: usize = 1024;

/// Most operations that may be asked to run at once.
pub const MAX_WORKERS: usize = 256;

/// Longest clean shutdown a client may ask for, in seconds: a day.
const MAX_DELAY: f64 = 86_400.0;

/// The service behind the sockets.
pub struct Service {
    core: Arc<Core>,
    calls: Arc<Waiting<Job>>,
}

/// What call threads do.
enum Job {
    Call(Box<Call>, Responder),
    Console(ConsoleCall),
}

impl Service {
    /// Starts the call threads.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn start(core: Arc<Core>) -> std::io::Result<Self> {
        // Dropped where a thread cannot be started, it lets go of those that were.
        let service = Self { core, calls: Arc::new(Waiting::new(MAX_WAITING_CALLS)) };
        let consoles = Arc::new(Consoles::default());
        for _ in 0..CALL_THREADS {
            let (core, calls) = (Arc::clone(&service.core), Arc::clone(&service.calls));
            let consoles = Arc::clone(&consoles);
            let serve = move |job| match job {
                Job::Call(call, reply) => serve(&core, *call, reply),
                Job::Console(call) => console::serve(&core, &consoles, call),
            };
            std::thread::Builder::new()
                .name("call".into())
                .stack_size(crate::ops::WORKER_STACK)
                .spawn(move || std::iter::from_fn(|| calls.next()).for_each(serve))?;
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.calls.end();
    }
}

impl server::Service for Service {
    fn call(&self, call: Call, reply: Responder) {
        match call {
            Call::UpdatesGet(wanted) => return updates_get(&self.core, &wanted, reply),
            // What waiting for a task takes: answered from memory, sooner than it were handed over.
            Call::UpdatesLastId(_) | Call::TaskStat(_) | Call::TaskDestroy(_) => {
                return serve(&self.core, call, reply);
            }
            _ => {}
        }
        let refused = self.calls.push(Job::Call(Box::new(call), reply));
        if let Err(Job::Call(_, reply)) = refused {
            reply.send(Err(Error::internal(format!(
                "{MAX_WAITING_CALLS} calls are waiting already; try again later"
            ))));
        }
    }

    fn console(&self, call: ConsoleCall) {
        let refused = self.calls.push(Job::Console(call));
        if let Err(Job::Console(call)) = refused {
            call.refuse("503 Service Unavailable");
        }
    }
}

fn updates_get(core: &Core, wanted: &UpdatesGet, reply: Responder) {
    let timeout = wanted.timeout.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let answer = move |batch: Result<_, UpdatesError>| {
        reply.finish::<UpdatesGet>(batch.map_err(|refused| Error::internal(refused.to_string())));
    };
    core.updates.get(wanted.last_id, timeout, Box::new(answer));
}

fn serve(core: &Arc<Core>, call: Call, reply: Responder) {
    let (dbg, trace) = debug_info(call.debug_info());
    tracing::debug!(method = call.name(), dbg, trace, "call");
    match call {
        // Removal waits behind the VM's other operations, without a thread to wait in.
        Call::VmRemove(vm) if core.records.has_vm(&vm.id) => {
            let done = move |outcome| reply.finish::<VmRemove>(outcome);
            core.submit_then(&vm.id, &vm.debug_info, Operation::Remove, done);
        }
        Call::VmImportMetadata(m) => import_metadata(core, &m, reply),
        call => reply.send(answer(core, &call)),
    }
}

/// Waits likewise: operations on the VM must not see its records change under them.
fn import_metadata(core: &Arc<Core>, m: &VmImportMetadata, reply: Responder) {
    match metadata::parse(&m.metadata) {
        Err(error) => reply.finish::<VmImportMetadata>(Err(error)),
        Ok(parsed) => {
            let id = parsed.vm.id.clone();
            let answer = id.clone();
            let done = move |outcome: Result<(), Error>| {
                reply.finish::<VmImportMetadata>(outcome.map(|()| answer));
            };
            core.submit_then(&id, &m.debug_info, Operation::ImportMetadata(Box::new(parsed)), done);
        }
    }
}

fn import_metadata_async(core: &Arc<Core>, text: &str, dbg: &str) -> Result<String, Error> {
    let parsed = metadata::parse(text)?;
    core.submit(&parsed.vm.id.clone(), dbg, Operation::ImportMetadata(Box::new(parsed)))
}

/// What a method returns, checked against its declaration.
fn returns<M: Method>(_: &M, result: Result<M::Result, Error>) -> Result<Value, Error> {
    result.map(|value| value.to_value())
}

/// Every method that is answered at once. One that is missing here is `Unimplemented`.
fn answer(core: &Arc<Core>, call: &Call) -> Result<Value, Error> {
    match call {
        Call::QueryService(m) => returns(m, Ok(query(core))),
        Call::GetDiagnostics(m) => returns(m, diagnostics::text(core)),

        Call::TaskStat(m) => returns(m, core.tasks.stat(&m.id)),
        Call::TaskList(m) => returns(m, Ok(core.tasks.list())),
        Call::TaskCancel(m) => returns(m, core.tasks.cancel(&m.id)),
        Call::TaskDestroy(m) => returns(m, core.tasks.destroy(&m.id)),
        Call::TaskDestroyOnFinish(m) => returns(m, core.tasks.destroy(&m.id)),

        Call::HostStat(m) => returns(m, hostinfo::stat(core)),
        Call::HostGetTotalMemoryMib(m) => returns(m, hostinfo::total_memory_mib(core)),
        Call::HostGetConsoleData(m) => returns(m, hostinfo::console_data(core)),
        Call::HostSendDebugKeys(m) => returns(m, hostinfo::send_debug_keys(core, &m.debug_keys)),
        Call::HostSetWorkerPoolSize(m) => returns(m, set_workers(core, m.pool_size)),

        Call::HostUpdateGuestAgentFeatures(m) => {
            returns(m, hostinfo::update_guest_agent_features(core, &m.features))
        }
        Call::HostCombineCpuPolicies(m) => returns(m, hostinfo::combine_cpu_policies(&m.policy1, &m.policy2)),
        Call::HostIsCompatible(m) => returns(m, hostinfo::is_compatible(&m.vm_policy, &m.host_policy)),
        Call::HostSetNumaAffinityPolicy(m) => {
            core.set_numa_policy(m.numa_affinity_policy);
            returns(m, Ok(()))
        }

        Call::VmAdd(m) => returns(m, vm::add(core, &m.vm)),
        Call::VmExportMetadata(m) => returns(m, metadata::export(core, &m.id)),
        Call::VmImportMetadataAsync(m) => returns(m, import_metadata_async(core, &m.metadata, &m.debug_info)),
        Call::VmGenerateStateString(m) => returns(m, Ok(metadata::state_string(&m.vm))),
        // Only unknown VMs come here; the others are removed on their queue.
        Call::VmRemove(m) => returns(m, core.records.remove_vm(&m.id)),
        Call::VmExists(m) => returns(m, Ok(core.records.has_vm(&m.id))),
        Call::VmStat(m) => returns(m, vm::stat(core, &m.id)),
        Call::VmList(m) => returns(m, vm::list(core)),
        Call::VmStart(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::Start)),
        Call::VmSuspend(m) => {
            returns(m, core.submit(&m.id, &m.debug_info, Operation::Suspend(m.suspend_vdi.clone())))
        }
        Call::VmResume(m) => {
            returns(m, core.submit(&m.id, &m.debug_info, Operation::Resume(m.suspend_vdi.clone())))
        }
        Call::VmCheckpoint(m) => {
            returns(m, core.submit(&m.id, &m.debug_info, Operation::Checkpoint(m.suspend_vdi.clone())))
        }
        Call::VmFastResume(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::FastResume)),
        Call::VmPause(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::Pause)),
        Call::VmUnpause(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::Unpause)),
        Call::VmCreate(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::CreateDomain)),
        Call::VmBuild(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::BuildDomain)),
        Call::VmCreateDeviceModel(m) if m.save_state => {
            Err(Error::Unimplemented("the state of a device model that was saved".to_owned()))
        }
        Call::VmCreateDeviceModel(m) => {
            returns(m, core.submit(&m.id, &m.debug_info, Operation::StartDeviceModel))
        }
        Call::VmDestroy(m) => returns(m, core.submit(&m.id, &m.debug_info, Operation::DestroyDomain)),
        Call::VmShutdown(m) => {
            let operation = delay(m.delay).map(Operation::Shutdown);
            returns(m, operation.and_then(|o| core.submit(&m.id, &m.debug_info, o)))
        }
        Call::VmReboot(m) => {
            let operation = delay(m.delay).map(Operation::Reboot);
            returns(m, operation.and_then(|o| core.submit(&m.id, &m.debug_info, o)))
        }

        Call::VmSetVcpus(m) => returns(m, vm::change(core, &m.id, &m.debug_info, Wish::Vcpus(m.vcpus))),
        Call::VmSetMemoryDynamicRange(m) => {
            returns(m, vm::change(core, &m.id, &m.debug_info, Wish::Memory(m.minimum, m.maximum)))
        }
        Call::VmSetShadowMultiplier(m) => {
            returns(m, vm::change(core, &m.id, &m.debug_info, Wish::ShadowMultiplier(m.multiplier)))
        }
        Call::VmSetXsdata(m) => {
            returns(m, vm::change(core, &m.id, &m.debug_info, Wish::Xsdata(m.xsdata.clone())))
        }
        Call::VmDelay(m) => {
            let operation = seconds(m.delay).map(Operation::Delay);
            returns(m, operation.and_then(|o| core.submit(&m.id, &m.debug_info, o)))
        }
        Call::VmExplain(m) => returns(m, core.records.vm(&m.id).map(|_| core.traces.explain(&m.id))),

        Call::VbdPlug(m) => returns(m, devices::plug::<Vbd>(core, &m.id, &m.debug_info)),
        Call::VbdUnplug(m) => returns(m, devices::unplug::<Vbd>(core, &m.id, &m.debug_info, m.force)),
        Call::VbdInsert(m) => returns(m, devices::insert(core, &m.id, &m.debug_info, &m.disk)),
        Call::VbdEject(m) => returns(m, devices::eject(core, &m.id, &m.debug_info)),
        Call::VbdRefresh(m) => returns(m, devices::refresh(core, &m.id, &m.debug_info)),
        Call::VifPlug(m) => returns(m, devices::plug::<Vif>(core, &m.id, &m.debug_info)),
        Call::VifUnplug(m) => returns(m, devices::unplug::<Vif>(core, &m.id, &m.debug_info, m.force)),
        Call::VifMove(m) => {
            returns(m, devices::change(core, &m.id, &m.debug_info, VifWish::Network(m.network.clone())))
        }
        Call::VifSetCarrier(m) => {
            returns(m, devices::change(core, &m.id, &m.debug_info, VifWish::Carrier(m.carrier)))
        }
        Call::VifSetLockingMode(m) => returns(
            m,
            devices::change(core, &m.id, &m.debug_info, VifWish::LockingMode(m.locking_mode.clone())),
        ),
        Call::VifSetIpv4Configuration(m) => {
            let wish = VifWish::Ipv4(m.ipv4_configuration.clone());
            returns(m, devices::change(core, &m.id, &m.debug_info, wish))
        }
        Call::VifSetIpv6Configuration(m) => {
            let wish = VifWish::Ipv6(m.ipv6_configuration.clone());
            returns(m, devices::change(core, &m.id, &m.debug_info, wish))
        }
        Call::VifSetTrunks(m) => {
            returns(m, devices::change(core, &m.id, &m.debug_info, VifWish::Trunks(m.trunks.clone())))
        }
        Call::VifSetPvsProxy(m) => {
            returns(m, devices::set_pvs_proxy(core, &m.id, &m.debug_info, m.proxy.as_ref()))
        }
        Call::VbdAdd(m) => returns(m, devices::add(core, &m.vbd)),
        Call::VbdRemove(m) => returns(m, devices::remove::<Vbd>(core, &m.id)),
        Call::VbdStat(m) => returns(m, devices::stat(core, &m.id)),
        Call::VbdList(m) => returns(m, devices::list(core, &m.id)),
        Call::VifAdd(m) => returns(m, devices::add(core, &m.vif)),
        Call::VifRemove(m) => returns(m, devices::remove::<Vif>(core, &m.id)),
        Call::VifStat(m) => returns(m, devices::stat(core, &m.id)),
        Call::VifList(m) => returns(m, devices::list(core, &m.id)),
        Call::PciAdd(m) => returns(m, devices::add(core, &m.pci)),
        Call::PciRemove(m) => returns(m, devices::remove::<Pci>(core, &m.id)),
        Call::PciStat(m) => returns(m, devices::stat(core, &m.id)),
        Call::PciList(m) => returns(m, devices::list(core, &m.id)),
        Call::VgpuAdd(m) => returns(m, devices::add(core, &m.vgpu)),
        Call::VgpuRemove(m) => returns(m, devices::remove::<Vgpu>(core, &m.id)),
        Call::VgpuStat(m) => returns(m, devices::stat(core, &m.id)),
        Call::VgpuList(m) => returns(m, devices::list(core, &m.id)),
        Call::VusbAdd(m) => returns(m, devices::add(core, &m.vusb)),
        Call::VusbRemove(m) => returns(m, devices::remove::<Vusb>(core, &m.id)),
        Call::VusbStat(m) => returns(m, devices::stat(core, &m.id)),
        Call::VusbList(m) => returns(m, devices::list(core, &m.id)),

        Call::UpdatesLastId(m) => returns(m, Ok(core.updates.last_id())),
        Call::UpdatesInjectBarrier(m) => returns(m, inject_barrier(core, &m.vm_id, m.id)),
        Call::UpdatesRemoveBarrier(m) => {
            core.updates.remove_barrier(m.id);
            returns(m, Ok(()))
        }
        Call::UpdatesRefreshVm(m) => returns(m, core.records.vm(&m.id).map(|_| core.announce(&m.id))),

        Call::DebugTrigger(m) => returns(m, debug::trigger(core, &m.cmd, &m.args)),
        Call::DebugShutdown(m) => returns(m, debug::shutdown()),

        other => observer(core, other).unwrap_or_else(|| Err(Error::Unimplemented(other.name().to_owned()))),
    }
}

/// `Observer.*`.
fn observer(core: &Core, call: &Call) -> Option<Result<Value, Error>> {
    let all = &core.observers;
    let set = |uuid: &str, change: &dyn Fn(&mut Observer)| all.change(uuid, |observer| change(observer));
    Some(match call {
        Call::ObserverCreate(m) => returns(m, all.create(m)),
        Call::ObserverDestroy(m) => {
            all.destroy(&m.uuid);
            returns(m, Ok(()))
        }
        Call::ObserverSetEnabled(m) => returns(m, set(&m.uuid, &|o| o.enabled = m.bool)),
        Call::ObserverSetAttributes(m) => returns(m, set(&m.uuid, &|o| o.attributes = m.dict.clone())),
        Call::ObserverSetEndpoints(m) => returns(m, set(&m.uuid, &|o| o.endpoints.clone_from(&m.endpoints))),
        Call::ObserverInit(m) => returns(m, Ok(())),
        Call::ObserverSetTraceLogDir(m) => returns(m, all.set("trace_log_dir", &m.string)),
        Call::ObserverSetHostId(m) => returns(m, all.set("host_id", &m.string)),
        Call::ObserverSetCompressTracingFiles(m) => returns(m, all.set("compress_tracing_files", &m.bool)),
        Call::ObserverSetExportInterval(m) => returns(m, all.set_positive("export_interval", &m.float)),
        Call::ObserverSetExportChunkSize(m) => returns(m, all.set_positive("export_chunk_size", &m.int)),
        Call::ObserverSetMaxSpans(m) => returns(m, all.set_positive("max_spans", &m.int)),
        Call::ObserverSetMaxTraces(m) => returns(m, all.set_positive("max_traces", &m.int)),
        Call::ObserverSetMaxDepth(m) => returns(m, all.set_positive("max_depth", &m.int)),
        Call::ObserverSetMaxFileSize(m) => returns(m, all.set_positive("max_file_size", &m.int)),
        _ => return None,
    })
}

fn query(core: &Core) -> Query {
    Query {
        name: "xenops".to_owned(),
        vendor: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
        instance_id: core.instance_id.clone(),
    }
}

/// A clean shutdown's timeout: absent is a hard one.
fn delay(seconds: Option<f64>) -> Result<Option<Duration>, Error> {
    seconds.map(self::seconds).transpose()
}

fn seconds(seconds: f64) -> Result<Duration, Error> {
    if !(0.0..=MAX_DELAY).contains(&seconds) {
        return Err(Error::internal(format!("delay {seconds} is not between 0 and {MAX_DELAY} seconds")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn set_workers(core: &Core, size: Int) -> Result<(), Error> {
    match usize::try_from(size) {
        Ok(size @ 1..=MAX_WORKERS) => {
            core.queues.resize(size);
            Ok(())
        }
        _ => Err(Error::internal(format!("worker pool size {size} is not between 1 and {MAX_WORKERS}"))),
    }
}

fn inject_barrier(core: &Core, vm: &str, id: Int) -> Result<(), Error> {
    let belongs = |object: &DynamicId| match object {
        DynamicId::Vm(id) => id == vm,
        DynamicId::Vbd(id)
        | DynamicId::Vif(id)
        | DynamicId::Pci(id)
        | DynamicId::Vgpu(id)
        | DynamicId::Vusb(id) => id.vm == vm,
        DynamicId::Task(_) => false,
    };
    core.updates.inject_barrier(id, belongs).map_err(|refused| Error::internal(refused.to_string()))
}
