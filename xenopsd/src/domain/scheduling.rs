//! How a VM's vcpus share the host's processors: weight and cap of the domain, and where each vcpu may run.

use crate::api::{Error, Int, Vm};
use crate::edge::{CpuMap, DomId, Hypervisor, HypervisorError, Physinfo};

/// What the record asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scheduling {
    /// 1 to 65535, relative to others, and percent of one processor, 0 for no limit.
    priority: Option<(u16, u16)>,
    /// Where each vcpu may run; none where it likes.
    masks: Vec<Option<CpuMap>>,
}

impl Scheduling {
    /// Checks a record. Processors that this host does not have are left out, as a VM that moves from host to host keeps
    /// its record; one has to be left in each list.
    ///
    /// # Errors
    /// `Internal_error` that says what cannot be.
    pub(super) fn of(vm: &Vm, host: &Physinfo) -> Result<Self, Error> {
        let priority = vm.scheduler_params.priority;
        let priority = priority.map(|(weight, cap)| self::priority(vm, weight, cap)).transpose()?;
        let given = &vm.scheduler_params.affinity;
        let mut masks = given.iter().map(|cpus| mask(vm, cpus, host)).collect::<Result<Vec<_>, _>>()?;
        // As in the model, the first list is for the vcpus that have none.
        let vcpus = usize::try_from(vm.vcpu_max).unwrap_or(0);
        if let Some(first) = masks.first().cloned() {
            masks.resize(vcpus, first);
        }
        Ok(Self { priority, masks })
    }

    /// Tells the hypervisor.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    pub(super) fn set(&self, hypervisor: &dyn Hypervisor, domid: DomId) -> Result<(), HypervisorError> {
        if let Some((weight, cap)) = self.priority {
            hypervisor.set_scheduler(domid, weight, cap)?;
        }
        for (vcpu, mask) in (0..).zip(&self.masks) {
            if let Some(mask) = mask {
                hypervisor.set_affinity(domid, vcpu, mask)?;
            }
        }
        Ok(())
    }
}

fn priority(vm: &Vm, weight: Int, cap: Int) -> Result<(u16, u16), Error> {
    let weight = u16::try_from(weight).ok().filter(|w| *w > 0);
    weight.zip(u16::try_from(cap).ok()).ok_or_else(|| {
        Error::internal(format!(
            "VM {}: scheduler weight must be 1 to 65535 and cap 0 to 65535 percent of a processor",
            vm.id
        ))
    })
}

/// None for an empty list, which leaves the vcpu free.
fn mask(vm: &Vm, cpus: &[Int], host: &Physinfo) -> Result<Option<CpuMap>, Error> {
    if cpus.is_empty() {
        return Ok(None);
    }
    let number = |cpu: &Int| {
        u16::try_from(*cpu)
            .map_err(|_| Error::internal(format!("VM {}: {cpu} in its affinity is no processor", vm.id)))
    };
    let cpus = cpus.iter().map(number).collect::<Result<Vec<u16>, _>>()?;
    let here: Vec<u16> = cpus.iter().copied().filter(|cpu| u32::from(*cpu) <= host.max_cpu_id).collect();
    if here.is_empty() {
        return Err(Error::internal(format!(
            "VM {}: this host has none of the processors {cpus:?} of its affinity; its last is {}",
            vm.id, host.max_cpu_id
        )));
    }
    Ok(Some(CpuMap::of(here)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vm;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn of(priority: Option<(Int, Int)>, affinity: &[&[Int]]) -> Result<Scheduling, Error> {
        let mut vm = test_vm(ID, "demo");
        vm.vcpu_max = 3;
        vm.scheduler_params.priority = priority;
        vm.scheduler_params.affinity = affinity.iter().map(|cpus| cpus.to_vec()).collect();
        Scheduling::of(&vm, &Physinfo { max_cpu_id: 3, ..Physinfo::default() })
    }

    #[test]
    fn weights_and_caps_are_what_the_scheduler_knows() {
        for (priority, known) in [
            ((1, 0), true),
            ((65535, 65535), true),
            ((0, 0), false),
            ((65536, 0), false),
            ((256, -1), false),
            ((256, 65536), false),
        ] {
            assert_eq!(of(Some(priority), &[]).is_ok(), known, "{priority:?}");
        }
    }

    #[test]
    fn the_first_list_is_for_those_that_have_none() {
        let masks = |affinity: &[&[Int]]| -> Vec<Option<Vec<u16>>> {
            let scheduling = of(None, affinity).unwrap();
            scheduling.masks.iter().map(|m| m.as_ref().map(|m| m.iter().collect())).collect()
        };
        assert_eq!(masks(&[]), []);
        assert_eq!(masks(&[&[0, 2]]), [Some(vec![0, 2]), Some(vec![0, 2]), Some(vec![0, 2])]);
        assert_eq!(masks(&[&[1], &[]]), [Some(vec![1]), None, Some(vec![1])]);
        assert_eq!(masks(&[&[0], &[1], &[2], &[3]]).len(), 3, "there is no fourth vcpu");
        assert_eq!(masks(&[&[1, 64]])[0], Some(vec![1]), "this host has no 64");
    }

    #[test]
    fn a_list_of_no_processor_here_is_refused() {
        let refused = of(None, &[&[0], &[64, 65]]).unwrap_err().to_string();
        assert!(refused.contains("[64, 65]") && refused.contains("last is 3"), "{refused}");
        assert!(of(None, &[&[-1]]).is_err() && of(None, &[&[65536]]).is_err());
    }
}
