//! xen-evtchn.

use xen_evtchn::abi::{self, EvtchnFifoControlBlock};
use xen_evtchn::{Port, Priority, Virq};

use crate::{List, consts, numbers, scalars, types};

pub(super) fn add(list: &mut List) {
    scalars!(list, { Port = evtchn_port_t });
    numbers!(list, {
        "EVTCHN_2L_NR_CHANNELS" = Port::LIMIT,
        "EVTCHN_FIFO_NR_CHANNELS" = Port::FIFO_LIMIT,
        "EVTCHN_FIFO_PRIORITY_MAX" = Priority::HIGHEST.0,
        "EVTCHN_FIFO_PRIORITY_DEFAULT" = Priority::DEFAULT.0,
        "EVTCHN_FIFO_PRIORITY_MIN" = Priority::LOWEST.0,
        "NR_VIRQS" = Virq::COUNT,
    });
    consts!(
        list,
        abi {
            EVTCHN_2L_NR_CHANNELS,
            EVTCHN_FIFO_NR_CHANNELS,
            EVTCHN_FIFO_PRIORITY_MAX,
            EVTCHN_FIFO_PRIORITY_DEFAULT,
            EVTCHN_FIFO_PRIORITY_MIN,
            EVTCHN_FIFO_MAX_QUEUES,
            EVTCHN_FIFO_PENDING,
            EVTCHN_FIFO_MASKED,
            EVTCHN_FIFO_LINKED,
            EVTCHN_FIFO_BUSY,
            EVTCHN_FIFO_LINK_BITS,
            EVTCHN_FIFO_LINK_MASK,
        }
    );
    types!(list, { EvtchnFifoControlBlock = evtchn_fifo_control_block { ready, rsvd: "_rsvd", head } });
    consts!(list, Virq "VIRQ_" [.0] {
        TIMER, DEBUG, CONSOLE, DOM_EXC, TBUF, DEBUGGER, XENOPROF, CON_RING, PCPU_STATE, MEM_EVENT, ARGO, ENOMEM, XENPMU,
    });
}
