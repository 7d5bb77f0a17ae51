/* What the simulators share: the settings, the ledger, the faults, the loop.
 *
 * heave-sim is a separate program for tests and benches. It stands on gateway/base and on the HTTP
 * server sessions, but shares no SMTP, ACS, Graph or token code with the gateway: two independent
 * readings of services.md must meet.
 *
 * Thread: one loop, one thread; nothing here is locked. */
#ifndef HEAVE_BENCH_SIM_SIM_H
#define HEAVE_BENCH_SIM_SIM_H

#include "bench/sim/conf.h"
#include "bench/sim/fault.h"
#include "bench/sim/ledger.h"
#include "bench/sim/pace.h"
#include "gateway/base/loop.h"
#include "gateway/base/tls.h"

#define SIM_TOKEN_KEY_BYTES 32

struct sim {
    const struct sim_conf *conf;
    struct loop *loop;
    struct ledger *ledger;
    struct faults *faults;
    struct closures *closures;
    struct tls_context *tls_smtp; /* no ALPN */
    struct tls_context *tls_http; /* offers h2 unless --http1-only */
    struct tls_context *tls_bad; /* a certificate no client may accept: the bad_certificate fault */
    uint8_t token_key[SIM_TOKEN_KEY_BYTES];
    uint16_t ports[SIM_PORT_COUNT]; /* the ports really bound */
};

/* Stores an accepted message in --keep-bodies as SERVICE-NUMBER.EXTENSION; does nothing without
 * that flag. A file that cannot be written is reported on standard error, because a test would then
 * compare against nothing. */
void sim_keep_body(struct sim *sim, enum sim_service service, uint64_t transaction,
                   struct span body);
/* The path of such a file. */
void sim_body_path(const struct sim *sim, enum sim_service service, uint64_t transaction, char *out,
                   size_t room);

/* The context a new connection of `service` gets: the bad one when a bad_certificate fault says so.
 */
struct tls_context *sim_tls_for(struct sim *sim, enum sim_service service,
                                struct tls_context *usual);

#endif
