//! Which VM a word means.

/// Most VMs listed in an error.
const SHOWN_MAX: usize = 10;

/// A VM as far as its names go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// uuid.
    pub(super) id: String,
    /// Name for people.
    pub(super) name: String,
}

/// A word that does not mean one VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It means none.
    #[error("there is no VM {wanted:?}{}", none_hint(*count))]
    None {
        /// The word.
        wanted: String,
        /// VMs there are.
        count: usize,
    },
    /// It means several.
    #[error("{wanted:?} means {} VMs; give more of the uuid:{}", matches.len(), listed(matches))]
    Several {
        /// The word.
        wanted: String,
        /// uuid and name of each.
        matches: Vec<(String, String)>,
    },
}

fn none_hint(count: usize) -> &'static str {
    if count == 0 { ": no VM is defined; `xenops create` defines one" } else { "; `xenops list` lists them" }
}

fn listed(matches: &[(String, String)]) -> String {
    let shown = matches.iter().take(SHOWN_MAX);
    let mut lines: Vec<String> =
        shown.map(|(id, name)| format!("\n  {id}  {}", super::table::printable(name))).collect();
    if matches.len() > SHOWN_MAX {
        lines.push(format!("\n  and {} more", matches.len() - SHOWN_MAX));
    }
    lines.concat()
}

/// The VM that `wanted` means: by uuid, else by name, else by the beginning of the uuid. A name wins over the
/// beginning of another VM's uuid, so that a VM called `cafe` is always reachable.
pub(super) fn resolve<'a>(wanted: &str, vms: &'a [Known]) -> Result<&'a Known, ResolveError> {
    let lower = wanted.to_ascii_lowercase();
    if let Some(vm) = vms.iter().find(|vm| vm.id.to_ascii_lowercase() == lower) {
        return Ok(vm);
    }
    let named: Vec<&Known> = vms.iter().filter(|vm| vm.name == wanted).collect();
    let found = if named.is_empty() && !wanted.is_empty() {
        vms.iter().filter(|vm| vm.id.to_ascii_lowercase().starts_with(&lower)).collect()
    } else {
        named
    };
    match found.as_slice() {
        [vm] => Ok(vm),
        [] => Err(ResolveError::None { wanted: wanted.to_owned(), count: vms.len() }),
        several => Err(ResolveError::Several {
            wanted: wanted.to_owned(),
            matches: several.iter().map(|vm| (vm.id.clone(), vm.name.clone())).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vms(list: &[(&str, &str)]) -> Vec<Known> {
        list.iter().map(|(id, name)| Known { id: (*id).to_owned(), name: (*name).to_owned() }).collect()
    }

    #[test]
    fn uuid_then_name_then_beginning() {
        let vms = vms(&[("cafe-01", "web"), ("cafe-02", "db"), ("beef-03", "cafe"), ("0123-04", "cafe-01")]);
        for (wanted, id) in [
            ("cafe-01", "cafe-01"),
            ("CAFE-02", "cafe-02"),
            ("web", "cafe-01"),
            ("cafe", "beef-03"),
            ("b", "beef-03"),
        ] {
            assert_eq!(resolve(wanted, &vms).map(|vm| vm.id.as_str()), Ok(id), "{wanted}");
        }
    }

    #[test]
    fn nothing_and_too_much_are_told_apart() {
        let vms = vms(&[("cafe-01", "web"), ("cafe-02", "web")]);
        assert!(matches!(resolve("mail", &vms), Err(ResolveError::None { count: 2, .. })));
        assert!(matches!(resolve("", &vms), Err(ResolveError::None { .. })));
        for wanted in ["web", "cafe"] {
            let error = resolve(wanted, &vms).unwrap_err();
            assert!(error.to_string().contains("cafe-02"), "{error}");
        }
        assert!(resolve("x", &[]).unwrap_err().to_string().contains("xenops create"));
    }

    proptest! {
        #[test]
        fn a_whole_uuid_always_means_its_vm(ids in proptest::collection::hash_set("[0-9a-f]{4}", 1..20), pick: prop::sample::Index) {
            let list: Vec<Known> = ids.iter().map(|id| Known { id: id.clone(), name: "same".to_owned() }).collect();
            let wanted = &list[pick.index(list.len())];
            prop_assert_eq!(resolve(&wanted.id, &list), Ok(wanted));
        }

        #[test]
        fn what_is_found_matches(wanted in "[0-9a-f]{0,3}", ids in proptest::collection::hash_set("[0-9a-f]{3}", 0..20)) {
            let list: Vec<Known> = ids.iter().map(|id| Known { id: id.clone(), name: String::new() }).collect();
            if let Ok(vm) = resolve(&wanted, &list) {
                prop_assert!(vm.id.starts_with(&wanted) || wanted.is_empty());
            }
        }
    }
}
