//! xen-evtchn.

use xen_evtchn::{Port, Virq};

use crate::{List, consts, numbers, scalars};

pub(super) fn add(list: &mut List) {
    scalars!(list, { Port = evtchn_port_t });
    numbers!(list, { "EVTCHN_2L_NR_CHANNELS" = Port::LIMIT, "NR_VIRQS" = Virq::COUNT });
    consts!(list, Virq "VIRQ_" [.0] {
        TIMER, DEBUG, CONSOLE, DOM_EXC, TBUF, DEBUGGER, XENOPROF, CON_RING, PCPU_STATE, MEM_EVENT, ARGO, ENOMEM, XENPMU,
    });
}
