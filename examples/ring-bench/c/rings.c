/* Both ends of two slot rings, written with the macros of io/ring.h as drivers in C write them: a batch is pushed and
 * published, a batch is taken and the event index set behind it. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ 0x00040d00

#define xen_mb() __sync_synchronize()
#if defined(__x86_64__) || defined(__i386__)
/* What the architecture orders anyway, only the compiler has to be told. */
#define xen_rmb() __asm__ volatile("" ::: "memory")
#define xen_wmb() __asm__ volatile("" ::: "memory")
#else
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

#include <xen/io/ring.h>

/* The index that the other side writes is read once. */
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))

#define SIZE 4096

#define RING(name, req_t, rsp_t)                                                                              \
    DEFINE_RING_TYPES(name, req_t, rsp_t);                                                                    \
                                                                                                              \
    struct name {                                                                                             \
        name##_front_ring_t front;                                                                            \
        name##_back_ring_t back;                                                                              \
    };                                                                                                        \
                                                                                                              \
    struct name *c_##name##_new(void *page, RING_IDX start, int init)                                         \
    {                                                                                                         \
        struct name *ring = malloc(sizeof(*ring));                                                            \
        name##_sring_t *sring = page;                                                                         \
        if (!ring)                                                                                            \
            abort();                                                                                          \
        if (init) {                                                                                           \
            memset(page, 0, SIZE);                                                                            \
            SHARED_RING_INIT(sring);                                                                          \
            sring->req_prod = sring->rsp_prod = start;                                                        \
            sring->req_event = sring->rsp_event = start + 1;                                                  \
        }                                                                                                     \
        FRONT_RING_ATTACH(&ring->front, sring, start, SIZE);                                                  \
        BACK_RING_ATTACH(&ring->back, sring, start, SIZE);                                                    \
        return ring;                                                                                          \
    }                                                                                                         \
                                                                                                              \
    void c_##name##_free(struct name *ring) { free(ring); }                                                   \
                                                                                                              \
    /* Pushes as many as fit and publishes them. */                                                           \
    unsigned c_##name##_push(struct name *ring, const req_t *in, unsigned n, unsigned *notify)                \
    {                                                                                                         \
        name##_front_ring_t *r = &ring->front;                                                                \
        unsigned i;                                                                                           \
        for (i = 0; i < n && !RING_FULL(r); i++) {                                                            \
            *RING_GET_REQUEST(r, r->req_prod_pvt) = in[i];                                                    \
            r->req_prod_pvt++;                                                                                \
        }                                                                                                     \
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(r, *notify);                                                      \
        return i;                                                                                             \
    }                                                                                                         \
                                                                                                              \
    /* Takes up to n responses, and asks for the next. */                                                     \
    int c_##name##_pop(struct name *ring, rsp_t *out, unsigned n, unsigned *more)                             \
    {                                                                                                         \
        name##_front_ring_t *r = &ring->front;                                                                \
        RING_IDX cons = r->rsp_cons, prod = READ_ONCE(r->sring->rsp_prod);                                    \
        unsigned i;                                                                                           \
        xen_rmb();                                                                                            \
        if (RING_RESPONSE_PROD_OVERFLOW(r, prod))                                                             \
            return -1;                                                                                        \
        for (i = 0; i < n && cons != prod; i++, cons++)                                                       \
            RING_COPY_RESPONSE(r, cons, &out[i]);                                                             \
        r->rsp_cons = cons;                                                                                   \
        RING_FINAL_CHECK_FOR_RESPONSES(r, *more);                                                             \
        return i;                                                                                             \
    }                                                                                                         \
                                                                                                              \
    /* Takes up to n requests, and asks for the next. */                                                      \
    int c_##name##_back_pop(struct name *ring, req_t *out, unsigned n, unsigned *more)                        \
    {                                                                                                         \
        name##_back_ring_t *r = &ring->back;                                                                  \
        RING_IDX cons = r->req_cons, prod = READ_ONCE(r->sring->req_prod);                                    \
        unsigned i;                                                                                           \
        xen_rmb();                                                                                            \
        if (RING_REQUEST_PROD_OVERFLOW(r, prod))                                                              \
            return -1;                                                                                        \
        for (i = 0; i < n && cons != prod && !RING_REQUEST_CONS_OVERFLOW(r, cons); i++, cons++)               \
            RING_COPY_REQUEST(r, cons, &out[i]);                                                              \
        r->req_cons = cons;                                                                                   \
        RING_FINAL_CHECK_FOR_REQUESTS(r, *more);                                                              \
        return i;                                                                                             \
    }                                                                                                         \
                                                                                                              \
    /* Answers as many requests as were taken, and publishes the responses. */                                \
    unsigned c_##name##_back_push(struct name *ring, const rsp_t *in, unsigned n, unsigned *notify)           \
    {                                                                                                         \
        name##_back_ring_t *r = &ring->back;                                                                  \
        unsigned i;                                                                                           \
        for (i = 0; i < n && r->rsp_prod_pvt != r->req_cons; i++) {                                           \
            *RING_GET_RESPONSE(r, r->rsp_prod_pvt) = in[i];                                                   \
            r->rsp_prod_pvt++;                                                                                \
        }                                                                                                     \
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(r, *notify);                                                     \
        return i;                                                                                             \
    }

/* Of the size, alignment and fields of netif_tx_request, netif_tx_response, blkif_request and blkif_response. */
struct net_req { uint32_t gref; uint16_t offset, flags, id, size; };
struct net_rsp { uint16_t id; int16_t status; };
struct blk_seg { uint32_t gref; uint8_t first_sect, last_sect; uint16_t pad; };
struct blk_req { uint8_t operation, nr_segments; uint16_t handle; uint32_t pad; uint64_t id, sector; struct blk_seg seg[11]; };
struct blk_rsp { uint64_t id; uint8_t operation, pad; int16_t status; uint32_t pad2; };

_Static_assert(sizeof(struct net_req) == 12 && sizeof(struct net_rsp) == 4, "netif.h");
_Static_assert(sizeof(struct blk_req) == 112 && sizeof(struct blk_rsp) == 16, "blkif.h");

RING(net, struct net_req, struct net_rsp)
RING(blk, struct blk_req, struct blk_rsp)
