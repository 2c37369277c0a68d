//! xen-netfront.

use xen_netfront::abi::{
    self, CtrlRequest, CtrlResponse, ExtraInfo, GrefEntry, HashTypes, RxFlags, RxRequest, RxResponse,
    TxFlags, TxRequest, TxResponse,
};

use crate::{List, consts, types};

pub(super) fn add(list: &mut List) {
    types!(list, {
        TxRequest = netif_tx_request { gref, offset, flags, id, size }
        TxResponse = netif_tx_response { id, status }
        RxRequest = netif_rx_request { id, pad, gref }
        RxResponse = netif_rx_response { id, offset, flags, status }
        ExtraInfo = netif_extra_info { kind: "type", flags, data: "u" }
        CtrlRequest = xen_netif_ctrl_request { id, kind: "type", data }
        CtrlResponse = xen_netif_ctrl_response { id, kind: "type", status, data }
        GrefEntry = xen_netif_gref { gref: "ref", flags, status }
    });
    consts!(list, TxFlags "NETTXF_" [.bits()] { CSUM_BLANK, DATA_VALIDATED, MORE_DATA, EXTRA_INFO });
    consts!(list, RxFlags "NETRXF_" [.bits()] { DATA_VALIDATED, CSUM_BLANK, MORE_DATA, EXTRA_INFO });
    consts!(list, abi "XEN_NETIF_" {
        EXTRA_FLAG_MORE, EXTRA_TYPE_GSO, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, EXTRA_TYPE_HASH, EXTRA_TYPE_MAX,
        GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, NR_SLOTS_MIN, MAX_TX_SIZE,
    });
    consts!(list, abi "XEN_NETIF_CTRL_TYPE_" {
        CTRL_GET_HASH_FLAGS = "XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS",
        CTRL_SET_HASH_FLAGS = "XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
        CTRL_SET_HASH_KEY = "XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
        CTRL_GET_HASH_MAPPING_SIZE = "XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE",
        CTRL_SET_HASH_MAPPING_SIZE = "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
        CTRL_SET_HASH_MAPPING = "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
        CTRL_SET_HASH_ALGORITHM = "XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM",
        CTRL_GET_GREF_MAPPING_SIZE = "XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
        CTRL_ADD_GREF_MAPPING = "XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING",
        CTRL_DEL_GREF_MAPPING = "XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING",
        CTRL_SUCCESS = "XEN_NETIF_CTRL_STATUS_SUCCESS",
        CTRL_NOT_SUPPORTED = "XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED",
        CTRL_INVALID_PARAMETER = "XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER",
        CTRL_BUFFER_OVERFLOW = "XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW",
        HASH_ALGORITHM_NONE = "XEN_NETIF_CTRL_HASH_ALGORITHM_NONE",
        HASH_ALGORITHM_TOEPLITZ = "XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ",
        GREF_READONLY = "XEN_NETIF_CTRLF_GREF_readonly",
    });
    consts!(list, HashTypes "XEN_NETIF_CTRL_HASH_TYPE_" [.bits()] { IPV4, IPV4_TCP, IPV6, IPV6_TCP });
    consts!(list, abi "NETIF_" { RSP_DROPPED, RSP_ERROR, RSP_OKAY, RSP_NULL });
}
