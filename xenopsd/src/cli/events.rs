//! What changes, and the operations under way.

use crate::api::{DynamicId, Error, Task, TaskCancel, TaskList, TaskStat, TaskState, UpdatesGet, VmStat};
use crate::rpc::ClientError;

use super::Session;
use super::error::CliError;
use super::progress::percent;
use super::table::{Align, printable, table};

pub(super) fn events(session: &mut Session<'_, '_>, follow: bool) -> Result<(), CliError> {
    let mut last_id = None;
    // The first answer is what is there; after that each call waits for news.
    let mut timeout = Some(0);
    loop {
        let call = UpdatesGet { debug_info: session.dbg(), last_id, timeout };
        let (_, changed, next) = session.client.call_within(&call, None)?;
        for object in changed {
            if session.json {
                session.print_json(&object)?;
            } else {
                let line = describe(session, &object)?;
                session.print(&format!("{line}\n"))?;
            }
        }
        session.streams.out.flush()?;
        if !follow {
            return Ok(());
        }
        (last_id, timeout) = (Some(next), None);
    }
}

/// The object and how it is now; it may have gone since the event.
fn describe(session: &Session<'_, '_>, object: &DynamicId) -> Result<String, CliError> {
    let device = |kind: &str, id: &crate::api::DeviceId| format!("{kind:<5} {}", printable(&id.to_string()));
    Ok(match object {
        DynamicId::Vm(id) => {
            let call = VmStat { debug_info: session.dbg(), id: id.clone() };
            let now = match present(session.client.call(&call))? {
                Some((vm, state)) => format!("{:?}  {}", state.power_state, printable(&vm.name)),
                None => "gone".to_owned(),
            };
            format!("vm    {}  {now}", printable(id))
        }
        DynamicId::Task(id) => {
            let call = TaskStat { debug_info: session.dbg(), id: id.clone() };
            let now = match present(session.client.call(&call))? {
                Some(task) => format!("{}  {}", state_text(&task.state), printable(&task.dbg)),
                None => "gone".to_owned(),
            };
            format!("task  {}  {now}", printable(id))
        }
        DynamicId::Vbd(id) => device("vbd", id),
        DynamicId::Vif(id) => device("vif", id),
        DynamicId::Pci(id) => device("pci", id),
        DynamicId::Vgpu(id) => device("vgpu", id),
        DynamicId::Vusb(id) => device("vusb", id),
    })
}

fn present<T>(answer: Result<T, ClientError>) -> Result<Option<T>, CliError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(ClientError::Remote(Error::DoesNotExist { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn tasks(session: &mut Session<'_, '_>) -> Result<(), CliError> {
    let tasks = session.client.call(&TaskList { debug_info: session.dbg() })?;
    if session.json {
        return session.print_json(&tasks);
    }
    let text = render(&tasks);
    session.print(&text)
}

pub(super) fn cancel(session: &mut Session<'_, '_>, task: &str) -> Result<(), CliError> {
    Ok(session.client.call(&TaskCancel { debug_info: session.dbg(), id: task.to_owned() })?)
}

fn render(tasks: &[Task]) -> String {
    let columns =
        [("ID", Align::Right), ("STATE", Align::Left), ("CANCEL", Align::Left), ("FOR", Align::Left)];
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            let cancellable = if task.cancellable { "yes" } else { "no" };
            vec![task.id.clone(), state_text(&task.state), cancellable.to_owned(), task.dbg.clone()]
        })
        .collect();
    table(&columns, &rows)
}

fn state_text(state: &TaskState) -> String {
    match state {
        TaskState::Completed(completion) => format!("done in {:.1} s", completion.duration),
        TaskState::Pending(_) | TaskState::Failed(_) => percent(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::value::Value;
    use crate::api::{Completion, Dict};

    fn task(id: &str, state: TaskState) -> Task {
        Task {
            id: id.to_owned(),
            dbg: "xenops start\u{7}".to_owned(),
            ctime: 0.0,
            state,
            subtasks: Dict::new(),
            debug_info: Dict::new(),
            backtrace: String::new(),
            cancellable: true,
        }
    }

    #[test]
    fn tasks_are_listed_by_what_they_are_for() {
        let tasks = [
            task("9", TaskState::Pending(0.5)),
            task("10", TaskState::Completed(Completion { duration: 1.25, result: None })),
            task("11", TaskState::Failed(Value::Null)),
        ];
        let expected = "\
ID  STATE          CANCEL  FOR
 9  50%            yes     xenops start\\u{7}
10  done in 1.2 s  yes     xenops start\\u{7}
11  failed         yes     xenops start\\u{7}
";
        assert_eq!(render(&tasks), expected);
    }
}
