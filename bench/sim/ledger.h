/* The ledger: every recipient a simulator took, and the counters of what it did.
 *
 * Entries are compact (a pointer into append-only text blocks per recipient, one record per
 * transaction) and bounded: when `max_entries` recipients are kept, later ones are still counted
 * but no longer listed. Whether a (Message-ID, recipient) was taken before is decided by a table of
 * 64-bit hashes over all services, so a message that reaches somebody through two services is a
 * duplicate too. Addresses compare without regard to ASCII case.
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_LEDGER_H
#define HEAVE_BENCH_SIM_LEDGER_H

#include "bench/sim/conf.h"
#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct ledger_counts {
    uint64_t requests;       /* HTTP requests; for HVE: sessions */
    uint64_t transactions;   /* accepted */
    uint64_t recipients;     /* accepted */
    uint64_t max_recipients; /* most recipients of one transaction */
    uint64_t duplicates;
    uint64_t distinct_recipients;
    uint64_t rejected; /* permanent refusals (5xx replies, 4xx statuses but 401 and 429) */
    uint64_t throttled;
    uint64_t auth_failures;
    uint64_t requests_during_retry_after;
    uint64_t requests_on_the_way; /* inside a closed period, but so early that they were sent before
                                     the answer came */
    uint64_t lost_answers;
    uint64_t repeated_operations; /* ACS: a known Operation-Id came again */
    uint64_t issued;              /* token service */
};

struct ledger_message {
    enum sim_service service;
    struct span account;
    struct span message_id; /* empty: one is made from the transaction number */
    const struct span *recipients;
    size_t recipient_count;
    uint64_t bytes;
};

struct ledger;
struct ledger *ledger_new(size_t max_entries);
void ledger_free(struct ledger **ledger);
/* Forgets entries and counters; transaction numbers go on, so that no two bodies share a name. */
void ledger_reset(struct ledger *ledger);
struct ledger_counts *ledger_counts(struct ledger *ledger, enum sim_service service);

/* Records an accepted message and returns its transaction number (per service, from 1). Everything
 * is copied. */
uint64_t ledger_accept(struct ledger *ledger, const struct ledger_message *message);

struct ledger_filter {
    struct span service;    /* empty: all */
    struct span message_id; /* likewise */
    struct span recipient;
    uint64_t offset; /* entries to skip */
    uint64_t limit;  /* lines to write */
};
/* Appends matching entries as NDJSON. `*out_next` is the offset to go on from, 0 at the end.
 * Errors: ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int ledger_write(const struct ledger *ledger, const struct ledger_filter *filter,
                          struct buf *out, uint64_t *out_next);
/* Appends the counters of all services as one JSON object (product.md section 8). Errors: as
 * ledger_write. */
MUST_USE int ledger_summary(const struct ledger *ledger, struct buf *out);
/* The `index`-th (from 0) transaction with this Message-ID. Errors: ERR_NOTFOUND. */
MUST_USE int ledger_find(const struct ledger *ledger, struct span message_id, uint64_t index,
                         enum sim_service *out_service, uint64_t *out_transaction);

#endif
