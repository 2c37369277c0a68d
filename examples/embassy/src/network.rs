//! The network: embassy's stack on the card, whether one is there or not.

use alloc::boxed::Box;
use alloc::vec;

use embassy_executor::Spawner;
use embassy_net::{Config, Stack, StackResources};
use xen_hypercall::{Platform, Wait};
use xen_netfront::FRAME_MAX;
use xen_netfront::adapters::embassy::EmbassyDriver;

use crate::control;
use crate::http::{self, CONNECTIONS};
use crate::{Domain, start as spawn};

/// What the stack's sockets are: those of connections, and one of DHCP.
const SOCKETS: usize = CONNECTIONS + 1;

pub(crate) fn start<P: Platform + Wait + 'static>(domain: &'static Domain<P>, spawner: Spawner) {
    let resources = Box::leak(Box::new(StackResources::<SOCKETS>::new()));
    let driver = EmbassyDriver::new(&domain.card, vec![0; FRAME_MAX], vec![0; 1514]);
    let seed = domain.events.platform().now().as_nanos() as u64;
    // The address comes from xenstore, or by DHCP.
    let (stack, mut runner) = embassy_net::new(driver, Config::default(), resources, seed);
    spawn(spawner, async move { runner.run().await });
    spawn(spawner, address(domain, stack));
    for _ in 0..CONNECTIONS {
        spawn(spawner, http::serve(domain, stack));
    }
}

/// Gives the stack its address, and says what it is.
async fn address<P: Platform + Wait>(domain: &'static Domain<P>, stack: Stack<'static>) {
    stack.wait_link_up().await;
    match control::address(domain).await {
        Some(address) => stack.set_config_v4(embassy_net::ConfigV4::Static(address)),
        None => {
            log::info!("no address in xenstore; asking DHCP");
            stack.set_config_v4(embassy_net::ConfigV4::Dhcp(Default::default()));
        }
    }
    loop {
        stack.wait_config_up().await;
        if let Some(config) = stack.config_v4() {
            log::info!("listening at {}, port 80", config.address);
        }
        stack.wait_config_down().await;
        log::info!("no address");
    }
}
