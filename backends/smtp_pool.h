/* Connections to one SMTP service, pooled per account: the socket side of smtp_client, and the
 * health of accounts. Shared by the kinds hve and smtp.
 *
 * Must not know: header rewriting (a function of the kind does it), queues, lanes. Thread: the
 * loop's.
 *
 * Connections are opened when deliveries wait and none is idle, up to `connections` per account; a
 * busy one with PIPELINING takes a second delivery. They are kept for 30 s when idle and replaced
 * after 1,000 messages.
 *
 * States of an account:
 *
 *     OK ──THROTTLED──► PARKED(until) ──time──► OK
 *     OK ──ACCOUNT_BLOCKED──► BLOCKED(until), CONFIG──► CONFIG(until)
 *     BLOCKED, CONFIG ──time──► one delivery at a time as a probe ──delivered──► OK
 *
 * A scope wider than the account does this to all accounts of the pool. Deliveries that wait for a
 * connection of an account that is parked end with the answer that parked it.
 *
 * When a connection cannot be made no other is tried for 1 s, 2 s, … 60 s; those that stand go on,
 * and when none does, deliveries end TRANSIENT and the account is unreachable. A delivery whose
 * connection, used before, is gone before its content began is given to another connection once:
 * that is how servers end idle sessions. */
#ifndef HEAVE_BACKENDS_SMTP_POOL_H
#define HEAVE_BACKENDS_SMTP_POOL_H

#include "backends/backend.h"
#include "backends/verdicts.h"

/* Makes what is sent for `account` of a message: a new header section in `out_header` and the rest
 * of the message, untouched, in `out_rest`. Pure. Errors: ERR_LIMIT, ERR_NOMEM. */
typedef int (*smtp_rewrite_fn)(struct span message, struct span account, struct buf *out_header,
                               struct span *out_rest);

struct smtp_pool_conf {
    const struct backend_env *env;   /* copied */
    const struct backend_conf *conf; /* lives as long as the pool */
    enum verdict_kind kind;
    uint32_t connections;    /* per account, at least 1 */
    bool prefer_login;       /* AUTH LOGIN before PLAIN */
    bool sender_is_account;  /* MAIL FROM is the account's address */
    smtp_rewrite_fn rewrite; /* NULL: messages go as they are */
    int64_t idle_ms;         /* how long an idle connection is kept; 0: 30 s */
};

/* Makes the backend object of a kind, whose `ops` name the functions below beside its own open.
 * Opens no connection yet. Errors: ERR_INVAL, ERR_IO (ca_file), with a sentence. */
MUST_USE int smtp_pool_open(const struct smtp_pool_conf *conf, const struct backend_ops *ops,
                            struct backend **out, struct err *err);
/* backend_ops.room, .deliver and .close. */
size_t smtp_pool_room(const struct backend *backend);
MUST_USE int smtp_pool_deliver(struct backend *backend, struct delivery *delivery);
void smtp_pool_close(struct backend *backend, int64_t grace_ms, void (*on_closed)(void *ctx),
                     void *ctx);

#endif
