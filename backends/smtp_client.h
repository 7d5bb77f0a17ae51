/* The SMTP client as a pure machine: reply bytes in, command bytes and events out. One session of
 * RFC 5321 with PIPELINING (RFC 2920), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531), STARTTLS
 * (3207), AUTH LOGIN and PLAIN (4954).
 *
 * Must not know: sockets, TLS records, clocks, pools, queues. Thread: one at a time.
 *
 *     new ─► greeting ─► EHLO (HELO) ─► [STARTTLS ─► on_start_tls / tls_done ─► EHLO] ─► [AUTH] ─►
 * on_ready READY: give ─► MAIL RCPT… DATA ─► on_start ─► content . ─► on_done        (again and
 * again) quit, 421, refusal, broken protocol, lost ─► on_end
 *
 * With PIPELINING two transactions may be inside: the content of one and the MAIL, RCPT and DATA of
 * the next leave as one group (RFC 2920 3.1), so that a busy connection needs one round trip a
 * message:
 *
 *     us      … content(1) . MAIL(2) RCPT(2) DATA(2) │            │ content(2) . MAIL(3) RCPT(3)
 * DATA(3) server                                         │ 250(1) 250 250 354
 *
 * A transaction ends with one answer per recipient. Recipients the server puts off with 452 4.5.3
 * (too many at once) are sent in a further round of the same transaction on the same session;
 * on_start is called once for all.
 *
 * Certainty: a session that is lost before the final dot was written gives VERDICT_TRANSIENT, after
 * that VERDICT_UNKNOWN. `untried` says that the session was lost (or answered 421) before on_start,
 * so that another session may take the transaction without anybody noticing. */
#ifndef HEAVE_BACKENDS_SMTP_CLIENT_H
#define HEAVE_BACKENDS_SMTP_CLIENT_H

#include "backends/backend.h"
#include "backends/verdicts.h"
#include "gateway/base/buf.h"
#include "queue/message.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct smtp_client;

/* What the server may be asked for; set after EHLO. */
enum smtp_extension {
    SMTP_EXT_PIPELINING = 1u << 0,
    SMTP_EXT_SIZE = 1u << 1,
    SMTP_EXT_8BITMIME = 1u << 2,
    SMTP_EXT_SMTPUTF8 = 1u << 3,
    SMTP_EXT_STARTTLS = 1u << 4,
    SMTP_EXT_DSN = 1u << 5,
    SMTP_EXT_CHUNKING = 1u << 6,
    SMTP_EXT_ENHANCEDSTATUSCODES = 1u << 7,
    SMTP_EXT_AUTH_LOGIN = 1u << 8,
    SMTP_EXT_AUTH_PLAIN = 1u << 9,
};

enum smtp_starttls {
    SMTP_STARTTLS_NEVER,
    SMTP_STARTTLS_OFFERED, /* when the server offers it */
    SMTP_STARTTLS_REQUIRED,
};

/* Strings live as long as the client. */
struct smtp_client_conf {
    const char *hostname; /* for EHLO */
    enum verdict_kind kind;
    enum smtp_starttls starttls;
    bool tls_already; /* the stream has TLS from its first byte */
    const char *user; /* NULL: no AUTH */
    const char *password;
    bool password_needs_tls;  /* refuse AUTH on a plain session */
    bool prefer_login;        /* AUTH LOGIN before PLAIN when both are offered */
    uint64_t message_bytes;   /* own limit for a message; 0: the server's */
    int64_t reply_timeout_ms; /* for the answer to the final dot, and a ceiling for the others; 0:
                                 RFC 5321 4.5.3.2 */
};

/* One mail to the recipients of one batch. The user's memory, zeroed; lent from smtp_client_give()
 * to on_done. */
struct smtp_transaction {
    struct span reverse_path;
    const struct span *recipients;
    size_t recipient_count; /* 1 .. BATCH_RECIPIENTS_MAX */
    struct span content[2]; /* sent one after the other; the second may be empty */
    bool needs_8bitmime;
    bool needs_smtputf8;
    struct answer *answers; /* recipient_count of them, filled before on_done */
    void *ctx;
    /* Results. */
    bool started; /* on_start was called */
    bool untried; /* see the top of this file; the answers are filled all the same */
    /* The machine's own. */
    struct smtp_transaction *next;
    size_t accepted;     /* recipients taken in this round */
    size_t later;        /* recipients put off to the next round */
    size_t next_command; /* 0: MAIL, 1..: RCPT, then DATA */
    size_t piece;        /* content[piece] from `offset` on has not been written */
    size_t offset;
    uint8_t line_state;
    bool mail_refused;
    uint8_t marks[BATCH_RECIPIENTS_MAX];
};

/* What the machine asks of its user. Every function may be called from inside any call into the
 * machine; none may free it. */
struct smtp_client_ops {
    /* Takes bytes for the wire (copied). An error ends the session. */
    int (*write)(void *ctx, struct span bytes);
    /* Whether so much is waiting to be sent that content should pause; go on with
     * smtp_client_pump(). */
    bool (*congested)(void *ctx);
    /* The stream is to be switched to TLS; call smtp_client_tls_done() afterwards. */
    void (*on_start_tls)(void *ctx);
    /* Signed in: transactions may be given. */
    void (*on_ready)(void *ctx);
    /* At least one recipient was taken and the server waits for content: after this returns 0 the
     * message may be accepted. An error ends the session before any content. */
    int (*on_start)(void *ctx, struct smtp_transaction *transaction);
    /* The transaction is its owner's again. */
    void (*on_done)(void *ctx, struct smtp_transaction *transaction);
    /* The session is over, all transactions are done; close the stream. Exactly once. */
    void (*on_end)(void *ctx);
};

/* Never NULL. `conf` must outlive the client. */
struct smtp_client *smtp_client_new(const struct smtp_client_conf *conf,
                                    const struct smtp_client_ops *ops, void *ctx);
/* The session must have ended. */
void smtp_client_free(struct smtp_client **client);

/* Takes bytes of the server; returns how many were used. The rest (part of a line) must be shown
 * again. */
size_t smtp_client_feed(struct smtp_client *client, struct span bytes);
void smtp_client_tls_done(struct smtp_client *client);
/* Adds a transaction; smtp_client_room() must be above 0. */
void smtp_client_give(struct smtp_client *client, struct smtp_transaction *transaction);
/* Goes on writing after congestion. */
void smtp_client_pump(struct smtp_client *client);
/* Takes no more transactions, finishes those inside, says QUIT. */
void smtp_client_quit(struct smtp_client *client);
/* The stream is gone, or the server took too long. `why` is a sentence for the answers. Nothing
 * when the session has ended already. */
void smtp_client_lost(struct smtp_client *client, const char *why);

/* How many more transactions it takes now; 0 unless READY. */
size_t smtp_client_room(const struct smtp_client *client);
/* How many are inside. */
size_t smtp_client_load(const struct smtp_client *client);
/* Whether on_ready has been called (also after the end). */
bool smtp_client_was_ready(const struct smtp_client *client);
bool smtp_client_ended(const struct smtp_client *client);
/* How long the server may take for what it owes us now; 0: it owes nothing. */
int64_t smtp_client_wait_ms(const struct smtp_client *client);
/* Set of enum smtp_extension, as of the last EHLO. */
unsigned smtp_client_extensions(const struct smtp_client *client);
/* Why the session ended, classified; for a session that ended by QUIT, verdict is
 * VERDICT_DELIVERED. Text is "" before the end. */
const struct answer *smtp_client_reason(const struct smtp_client *client);

#endif
