//! `explain`: what an operation is made of, how far each step is, and what was taken back.

use crate::api::value::{FromValue as _, Value};
use crate::api::{Error, Explanation, Int, PlannedStep, StepState, TaskState, VmExplain};

use super::Session;
use super::error::CliError;
use super::table::{Align, printable, table};
use super::vm::find;

pub(super) fn explain(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let explained = session.client.call(&VmExplain { debug_info: session.dbg(), id: vm.id })?;
    if session.json {
        return session.print_json(&explained);
    }
    let text = match explained {
        None => format!("Nothing has been done with {} since the daemon started.\n", printable(&vm.name)),
        Some(explained) => render(&vm.name, &explained),
    };
    session.print(&text)
}

fn render(name: &str, explained: &Explanation) -> String {
    let outcome = match &explained.state {
        TaskState::Pending(done) => format!("under way, {:.0} % done", done * 100.0),
        TaskState::Completed(end) => format!("done in {:.3} s", end.duration),
        TaskState::Failed(error) => format!("failed: {}", text_of(error)),
    };
    let head = format!("{} of {}, task {}: {}", explained.operation, name, explained.task, outcome);
    if explained.steps.is_empty() {
        return format!("{}\n", printable(&head));
    }
    let columns = [
        ("STEP", Align::Left),
        ("EFFECT", Align::Left),
        ("BEGAN/S", Align::Right),
        ("TOOK/S", Align::Right),
        ("OUTCOME", Align::Left),
    ];
    let rows: Vec<_> = explained.steps.iter().flat_map(rows).collect();
    format!("{}\n\n{}", printable(&head), table(&columns, &rows))
}

/// A step, and below it what took it back.
fn rows(step: &PlannedStep) -> Vec<Vec<String>> {
    let seconds = |time: Option<f64>| time.map_or(String::new(), |time| format!("{time:.3}"));
    let outcome = match &step.state {
        StepState::Waiting => "-".to_owned(),
        StepState::Running => "under way".to_owned(),
        StepState::Done => "done".to_owned(),
        StepState::Failed(error) => format!("failed: {}", text_of(error)),
    };
    let mut rows =
        vec![vec![place(step), step.what.clone(), seconds(step.began), seconds(step.took), outcome]];
    rows.extend(step.undo.iter().map(|undo| {
        let outcome = undo.error.as_ref().map_or("done".to_owned(), |e| format!("failed: {}", text_of(e)));
        vec![
            String::new(),
            format!("  undone by: {}", undo.what),
            String::new(),
            seconds(Some(undo.took)),
            outcome,
        ]
    }));
    rows
}

/// Its number at each level; `|` before the last says that it runs beside its siblings.
fn place(step: &PlannedStep) -> String {
    let Some((last, outer)) = step.place.split_last() else { return String::new() };
    let outer: Vec<_> = outer.iter().map(Int::to_string).collect();
    let separator = match (outer.is_empty(), step.parallel) {
        (true, _) => "",
        (false, true) => "|",
        (false, false) => ".",
    };
    format!("{}{separator}{last}", outer.join("."))
}

fn text_of(error: &Value) -> String {
    Error::from_value(error).map_or_else(|_| "?".to_owned(), |error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::value::ToValue as _;
    use crate::api::{Completion, Undo};

    fn step(what: &str, place: &[Int], parallel: bool, state: StepState) -> PlannedStep {
        let began = (state != StepState::Waiting).then_some(0.25);
        PlannedStep {
            what: what.to_owned(),
            place: place.to_vec(),
            parallel,
            took: began,
            began,
            state,
            undo: Vec::new(),
        }
    }

    fn explained(state: TaskState, steps: Vec<PlannedStep>) -> Explanation {
        Explanation {
            vm: "id".to_owned(),
            operation: "start".to_owned(),
            task: "7".to_owned(),
            dbg: String::new(),
            began: 0.0,
            state,
            steps,
        }
    }

    #[test]
    fn steps_are_a_table_with_their_undo_below() {
        let failed = StepState::Failed(Error::IoError.to_value());
        let mut create = step("create domain", &[1], false, StepState::Done);
        create.undo = vec![Undo { what: "destroy domain".to_owned(), took: 0.5, error: None }];
        let steps = vec![
            create,
            step("build domain", &[2, 1], true, failed),
            step("settle", &[3], false, StepState::Waiting),
        ];
        let explained = explained(TaskState::Failed(Error::IoError.to_value()), steps);
        let text = render("web", &explained);
        let expected = "\
start of web, task 7: failed: reading or writing a stream failed

STEP  EFFECT                       BEGAN/S  TOOK/S  OUTCOME
1     create domain                  0.250   0.250  done
        undone by: destroy domain            0.500  done
2|1   build domain                   0.250   0.250  failed: reading or writing a stream failed
3     settle                                        -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_operation_without_a_plan_is_one_line() {
        let done = TaskState::Completed(Completion { duration: 0.5, result: None });
        let explained = explained(done, Vec::new());
        assert_eq!(render("a\nb", &explained), "start of a\\nb, task 7: done in 0.500 s\n");
    }
}
