//! What the two ABIs have in common, and which of them is in use.

use xen_hypercall::{Platform, SharedInfo, VcpuId, VcpuInfo};

use crate::fifo::Pages;
use crate::two_level::Scan;
use crate::{Error, Port};

/// How Xen tells a domain of events. The domain chooses once, at the start.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Abi {
    /// Bitmaps in `shared_info`, which every Xen has: ports 1 to 4095, no priorities, no order. Costs no memory.
    #[default]
    TwoLevel,
    /// A word per port and queues per vCPU, from Xen 4.4 on: ports 1 to 131,071, sixteen priorities, and within each
    /// the order in which the events came. Costs three pages and one more for each 1024 ports beyond the first.
    Fifo,
    /// FIFO if this Xen has it, otherwise two-level.
    Best,
}

/// Where the ports' bits are.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'e> {
    pub(crate) info: SharedInfo<'e>,
    /// With the FIFO ABI.
    pub(crate) fifo: Option<&'e Pages>,
}

/// A vCPU, and where Xen tells it that there are events.
#[derive(Clone, Copy)]
pub(crate) struct Vcpu<'e> {
    pub(crate) id: VcpuId,
    pub(crate) info: VcpuInfo<'e>,
}

/// What one pass over a vCPU's events did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(unreachable_pub, reason = "public for the loom tests alone")]
pub struct Dispatched {
    /// What was taken.
    pub scan: Scan,
    /// There may be more: another pass is at work and has been told, or too many came while this one was.
    pub more: bool,
}

/// One ABI. A trait object chooses it, so that an image whose constructor never names the FIFO ABI does not hold its code.
pub(crate) trait Delivery: Sync {
    fn abi(&self) -> Abi;

    /// Ports are below this.
    fn limit(&self) -> u32;

    /// Takes a vCPU's events. None: there is nothing to do.
    fn dispatch(&self, shared: Shared<'_>, vcpu: Vcpu<'_>, fire: &mut dyn FnMut(u32)) -> Option<Dispatched>;

    fn is_masked(&self, shared: Shared<'_>, port: Port) -> bool;

    fn mask(&self, shared: Shared<'_>, port: Port);

    /// False: there is an event which Xen does not deliver; the port is unmasked nevertheless.
    fn unmask(&self, shared: Shared<'_>, port: Port, refire: &mut dyn FnMut() -> bool) -> bool;

    /// Clears the pending bit; says whether it was set.
    fn take_pending(&self, shared: Shared<'_>, port: Port) -> bool;

    /// Makes room for a port below the limit.
    fn ensure(&self, shared: Shared<'_>, platform: &dyn Platform, port: Port) -> Result<(), Error>;

    /// Gives Xen what it needs beside the place of the vCPU's `vcpu_info`, which is there.
    fn add_vcpu(&self, shared: Shared<'_>, platform: &dyn Platform, vcpu: VcpuId) -> Result<(), Error>;

    /// Whether Xen has that.
    fn has_vcpu(&self, shared: Shared<'_>, vcpu: VcpuId) -> Result<(), Error>;

    /// Sets all up again in a new domain, with every port masked.
    fn resume(&self, shared: Shared<'_>, platform: &dyn Platform) -> Result<(), Error>;

    /// Closes all ports and ends the use of the pages.
    fn reset(&self, pages: Option<Pages>, platform: &dyn Platform) -> Result<(), Error>;
}
