/* Routing and splitting: envelope and rules in, batches of at most 50 recipients out. Pure.
 *
 * design.md section 6: normalise (domain IDNA and case-folded), de-duplicate (case-insensitively),
 * first matching rule per recipient, group by backend, cut. No recipient of a message ends up in
 * two batches.
 *
 * Must not know: queue, sockets, clock. Thread: any; the configuration is an immutable snapshot. */
#ifndef HEAVE_GATEWAY_ROUTE_H
#define HEAVE_GATEWAY_ROUTE_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum route_recipient_class {
    ROUTE_ANY,
    ROUTE_INTERNAL,
    ROUTE_EXTERNAL,
};

/* One row of `routes:`; every condition given must hold. */
struct route_rule {
    enum route_recipient_class recipient;
    const char *const *domains; /* recipient domains: "contoso.com", "*.contoso.com"; none: any */
    size_t domain_count;
    const char *lane;    /* NULL: any */
    const char *client;  /* NULL: any */
    const char *sender;  /* pattern as in policy; NULL: any */
    const uint32_t *via; /* indexes into backends, in order of preference */
    size_t via_count;
};
struct route_backend {
    const char *name;
    uint32_t recipients_per_message; /* 1..50 */
    uint64_t message_bytes;          /* 0: no limit */
    bool internal_only;              /* HVE: passed over for external recipients */
    bool needs_7bit_envelope;        /* cannot carry non-ASCII addresses */
};
struct route_conf {
    const char *const
        *accepted_domains; /* "contoso.com", "*.corp.contoso.com" (sub-domains only) */
    size_t accepted_count;
    const struct route_rule *rules;
    size_t rule_count;
    const struct route_backend *backends;
    size_t backend_count;
};

struct route_request {
    struct span lane;
    struct span client;
    struct span sender;
    size_t message_bytes;
    const struct span *recipients;
    size_t recipient_count;
};
struct route_batch {
    uint32_t backend; /* index */
    struct span *recipients;
    size_t recipient_count;
};
/* A recipient no rule or backend takes. */
struct route_refused {
    struct span address;
    const char *reason; /* static sentence */
};
struct route_plan {
    struct route_batch *batches;
    size_t batch_count;
    size_t recipient_count; /* distinct, over all batches */
    struct route_refused *refused;
    size_t refused_count;
};

/* Whether the domain of `address` is one of the accepted ones. */
bool route_is_internal(const struct route_conf *conf, struct span address);
/* Address with its domain as lower-case A-label (UTS 46 by libidn2), in `arena`. Errors: ERR_INVAL,
 * ERR_NOMEM. */
MUST_USE int route_normalise(struct span address, struct arena *arena, struct span *out);
/* Why a recipient alone could not be routed (asked at RCPT, before the size is known): NULL when it
 * can, else a static sentence. `request` needs lane, client, sender and message_bytes; its
 * recipients are not looked at. */
const char *route_objection(const struct route_conf *conf, const struct route_request *request,
                            struct span address);
/* Whether `pattern` ("*", "*@contoso.com", "*@*.contoso.com", "a@contoso.com") covers the sender.
 */
bool route_sender_matches(struct span pattern, struct span sender);
/* Everything in `arena`. Linear in recipients but for hashing. Errors: ERR_NOMEM. */
MUST_USE int route_plan(const struct route_conf *conf, const struct route_request *request,
                        struct arena *arena, struct route_plan *out);

#endif
