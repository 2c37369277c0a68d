//! xen-netfront.

use xen_netfront::abi::{self, ExtraInfo, RxFlags, RxRequest, RxResponse, TxFlags, TxRequest, TxResponse};

use crate::{List, consts, types};

pub(super) fn add(list: &mut List) {
    types!(list, {
        TxRequest = netif_tx_request { gref, offset, flags, id, size }
        TxResponse = netif_tx_response { id, status }
        RxRequest = netif_rx_request { id, pad, gref }
        RxResponse = netif_rx_response { id, offset, flags, status }
        ExtraInfo = netif_extra_info { kind: "type", flags, data: "u" }
    });
    consts!(list, TxFlags "NETTXF_" [.bits()] { CSUM_BLANK, DATA_VALIDATED, MORE_DATA, EXTRA_INFO });
    consts!(list, RxFlags "NETRXF_" [.bits()] { DATA_VALIDATED, CSUM_BLANK, MORE_DATA, EXTRA_INFO });
    consts!(list, abi "XEN_NETIF_" {
        EXTRA_FLAG_MORE, EXTRA_TYPE_GSO, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, EXTRA_TYPE_HASH, EXTRA_TYPE_MAX,
        GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, NR_SLOTS_MIN, MAX_TX_SIZE,
    });
    consts!(list, abi "NETIF_" { RSP_DROPPED, RSP_ERROR, RSP_OKAY, RSP_NULL });
}
