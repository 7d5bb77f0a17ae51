/* The settings of heave-sim: command line in, `struct sim_conf` out.
 *
 * Built-in accounts (product.md section 8) are always there; flags add to them, and a flag for an
 * existing name changes its secret. Must not know: sockets, loops. Thread: any; constant once read.
 */
#ifndef HEAVE_BENCH_SIM_CONF_H
#define HEAVE_BENCH_SIM_CONF_H

#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sim_service {
    SIM_HVE,
    SIM_ACS,
    SIM_GRAPH,
    SIM_TOKEN,
};
#define SIM_SERVICE_COUNT 4
/* "hve", "acs", "graph", "token". */
const char *sim_service_name(enum sim_service service);
/* Errors: ERR_NOTFOUND. */
MUST_USE int sim_service_find(struct span name, enum sim_service *out);

/* Ports are indexed by service; the control port comes last. */
#define SIM_PORT_CONTROL SIM_SERVICE_COUNT
#define SIM_PORT_COUNT (SIM_SERVICE_COUNT + 1)

enum sim_hve_tls {
    SIM_HVE_STARTTLS,
    SIM_HVE_IMPLICIT,
    SIM_HVE_PLAIN,
};
enum sim_repeat {
    SIM_REPEAT_SAME, /* a known Operation-Id gets the same 202 again */
    SIM_REPEAT_CONFLICT,
    SIM_REPEAT_BAD_REQUEST,
};

#define SIM_LIST_MAX 64
struct sim_list {
    const char *items[SIM_LIST_MAX];
    size_t count;
};

struct sim_conf {
    const char *dir;
    const char *bind;
    uint64_t ports[SIM_PORT_COUNT];
    struct sim_list hve_accounts; /* "user:password" */
    struct sim_list clients;      /* "id:secret" */
    struct sim_list mailboxes;
    struct sim_list domains;     /* accepted domains of the tenant, and the linked domains of ACS */
    struct sim_list acs_senders; /* whole addresses; none: the usual names at every domain */
    struct sim_list faults;      /* SPECs, not parsed */
    const char *tenant;
    const char *acs_key; /* base64 */
    const char *keep_bodies;
    const char *hve_ehlo; /* comma separated keywords; NULL: services.md 5.1 */
    enum sim_hve_tls hve_tls;
    bool hve_open; /* a plain sink: no AUTH, no identity, any recipient domain */
    uint64_t hve_max_bytes;
    uint64_t hve_min_token_life_s;
    uint64_t max_recipients; /* HVE and ACS */
    const char *acs_quota;   /* quota text or "off" */
    const char *acs_status_quota;
    uint64_t acs_max_bytes;
    uint64_t acs_drift_s;
    uint64_t acs_poll_s; /* retry-after of 202 and of a running operation */
    uint64_t acs_running_ms;
    enum sim_repeat acs_repeat;
    uint64_t graph_concurrency; /* 0: no limit */
    const char *graph_quota;
    uint64_t graph_max_bytes;
    uint64_t graph_max_recipients;
    uint64_t graph_daily_recipients; /* 0: no limit */
    uint64_t graph_daily_status;
    uint64_t graph_retry_after_s;
    uint64_t latency_ms[SIM_SERVICE_COUNT];
    uint64_t token_lifetime_s;
    const char *token_roles; /* comma separated, or "none" */
    uint64_t ledger_entries;
    uint64_t retry_grace_ms;
    uint64_t seed; /* 0: random */
    bool http1_only;
};

/* Reads the command line. Strings are borrowed from argv. Returns 0; 1 when --help was printed on
 * standard output; ERR_INVAL with a sentence. */
MUST_USE int sim_conf_read(int argc, char **argv, struct sim_conf *out, struct err *err);

/* The secret that belongs to `name` in a list of "name:secret" (names without regard to case; the
 * last entry counts), or a span with NULL data. `out_name` (may be NULL) gets the name as
 * configured. */
struct span sim_list_secret(const struct sim_list *list, struct span name, struct span *out_name);
/* The entry equal to `item` without regard to case, or NULL. */
const char *sim_list_find(const struct sim_list *list, struct span item);
/* Whether an address is in one of the domains. */
bool sim_address_internal(const struct sim_conf *conf, struct span address);
/* What follows the last '@', or an empty span. */
struct span sim_address_domain(struct span address);

#endif
