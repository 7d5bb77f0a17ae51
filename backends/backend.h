/* The contract of a backend: one batch in, a verdict per recipient out. And the registry of kinds.
 *
 * Must not know: the queue, lanes' retry policy, clients. A backend gets its settings as the plain
 * structs below, reports by callback, and never logs above debug: the courier owns the record of an
 * attempt.
 *
 * Thread: a backend object belongs to one loop; every delivery loop has its own (its connections,
 * tokens). Callbacks run on that loop, never inside backend_deliver().
 *
 * One delivery:
 *
 *     backend_deliver() ── 0 ──► [waits for a connection, token] ──► on_start() ──► [bytes] ──►
 * on_done() └─ error: no callback runs
 *
 * on_start() runs before the first byte after which the service could accept the batch; it returns
 * 0 to go on, or an error, and then nothing is sent and on_done() follows with VERDICT_TRANSIENT.
 * on_done() runs exactly once. */
#ifndef HEAVE_BACKENDS_BACKEND_H
#define HEAVE_BACKENDS_BACKEND_H

#include "backends/mail_view.h"
#include "gateway/base/buf.h"
#include "gateway/base/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What an answer means (design.md section 5). */
enum verdict {
    VERDICT_DELIVERED,           /* accepted by the service: recipient done */
    VERDICT_RECIPIENT_PERMANENT, /* that recipient fails; the others go on */
    VERDICT_MESSAGE_PERMANENT,   /* the message can never pass here (size, syntax, needs SMTPUTF8):
                                    all fail */
    VERDICT_THROTTLED,           /* scope closed until a time; no attempt used */
    VERDICT_TRANSIENT,           /* retry by the lane's ladder */
    VERDICT_ACCOUNT_BLOCKED,     /* the account is parked; the batch may go to another account or
                                    backend */
    VERDICT_CONFIG,  /* a setting at Microsoft or here is wrong; account stopped, batch waits */
    VERDICT_REFRESH, /* the token was refused: renewed once by the backend, then CONFIG. Never
                        reaches on_done */
    VERDICT_UNKNOWN, /* the service may have accepted it and the answer was lost */
};
#define VERDICT_COUNT 9
/* "delivered", "recipient-permanent", ... */
const char *verdict_name(enum verdict verdict);

/* How far a THROTTLED, ACCOUNT_BLOCKED or CONFIG verdict reaches. */
enum verdict_scope {
    SCOPE_NONE,
    SCOPE_ACCOUNT, /* HVE account, mailbox, OAuth user */
    SCOPE_BACKEND, /* subscription (ACS), host (relay) */
    SCOPE_TENANT,  /* everything of this tenant */
};

/* One answer, as verdict tables and backends hand it on. Text is peer text: escape before logging.
 */
struct answer {
    enum verdict verdict;
    enum verdict_scope scope;
    int64_t
        wait_ms;    /* THROTTLED, BLOCKED, CONFIG: how long to stay away; 0: default of the class */
    uint32_t code;  /* SMTP reply code or HTTP status; 0: none was received */
    char text[300]; /* "550 5.1.10 ..." or "429 TooManyRequests ...": the service's words, cut */
    const char *remedy; /* static sentence naming the Microsoft setting, or NULL */
};

/* The batch as the backend sees it; lent from backend_deliver() until on_done() has returned. */
struct delivery {
    struct span message_id; /* heave's id of the message */
    uint32_t batch_number;
    uint32_t epoch;  /* tries known to have failed (batch.epoch): the same after a lost answer, one
                      * more after  a definite refusal; part of the ACS Operation-Id */
    bool maybe_sent; /* an earlier try may have been accepted: ask first where the service can be
                        asked */
    struct span reverse_path; /* empty: null reverse-path */
    const struct span *recipients;
    size_t recipient_count; /* 1 .. min(50, limit) */
    struct span body;       /* RFC 5322 message with CR LF */
    bool needs_8bitmime;
    bool needs_smtputf8;

    /* The callbacks and their context. */
    int (*on_start)(struct delivery *delivery);
    /* `answers[i]` belongs to recipients[i]; lent until return. `account` names who sent it (""
     * when nobody did). */
    void (*on_done)(struct delivery *delivery, const struct answer *answers, const char *account);
    void *ctx;
    void *backend_private; /* the backend's own, from deliver to done */
};

/* Settings of every kind; each uses what it needs. Strings live as long as the backend. */
struct backend_account {
    const char *user;
    const char *password; /* NULL: none */
};
enum backend_tls {
    BACKEND_TLS_OFF,
    BACKEND_TLS_OPTIONAL, /* STARTTLS when offered, certificate not verified */
    BACKEND_TLS_STARTTLS, /* required, verified */
    BACKEND_TLS_IMPLICIT,
};
enum backend_auth {
    BACKEND_AUTH_NONE,
    BACKEND_AUTH_LOGIN, /* LOGIN or PLAIN, whichever the server offers */
    BACKEND_AUTH_XOAUTH2,
};
struct credential_conf {
    const char *name;
    const char
        *authority; /* https://login.microsoftonline.com, or another cloud's, or a simulator's */
    const char *tenant_id;
    const char *client_id;
    const char *client_secret; /* client_secret kind */
    const char *scope;         /* NULL: the backend's default (services.md 4.2) */
    const char *ca_file;       /* NULL: system roots */
};
struct backend_conf {
    const char *name;
    const char *type;     /* "hve", "smtp", "acs", "graph" */
    const char *hostname; /* our own name, for EHLO */
    /* hve, smtp */
    const char *host;
    uint16_t port;
    enum backend_tls tls;
    enum backend_auth auth;
    const struct backend_account *accounts; /* hve: one or more; smtp: the user, or none */
    size_t account_count;
    uint32_t connections; /* per account */
    /* acs, graph */
    const char *endpoint;   /* https://… without trailing slash */
    const char *access_key; /* acs: base64 */
    const char *sender;     /* acs: senderAddress */
    const char *api_version;
    const char *const *mailboxes; /* graph */
    size_t mailbox_count;
    const struct credential_conf *credential;
    const char *
        neutral_to; /* shown in To when a REST batch has only hidden recipients; NULL: the sender */
    /* all */
    const char *ca_file;
    uint32_t recipients_per_message; /* already the smallest of setting, service and 50 */
    uint64_t message_bytes;          /* 0: the service's own limit */
    uint32_t concurrency; /* per account or mailbox (hve, smtp, graph), per subscription (acs) */
    int64_t connect_timeout_ms;
    int64_t reply_timeout_ms; /* for the answer to the final dot or to a request */
};

/* What a backend may use of its surroundings. */
struct backend_env {
    struct loop *loop;
    /* Reads a message into parts (gateway/mime), see mail_view.h. NULL where no kind needs it
     * (tests). */
    mail_read_fn read_mail;
    /* An account, mailbox or the whole backend changed health: "blocked", "config", "unreachable"
     * (no connection can be made), "ok", with the service's words and the remedy. For logs and
     * metrics. May be NULL. */
    void (*on_health)(void *ctx, const char *backend, const char *account, const char *what,
                      const char *text, const char *remedy);
    void *ctx;
};

struct backend;

/* One row per kind. All of it runs on the backend's loop. */
struct backend_ops {
    const char *type;
    /* Errors: ERR_INVAL with a sentence naming the setting. Opens no connection yet. */
    int (*open)(const struct backend_env *env, const struct backend_conf *conf,
                struct backend **out, struct err *err);
    /* How many more deliveries it would send at once now (free slots over all healthy accounts).
     * The courier claims no more than that. */
    size_t (*room)(const struct backend *backend);
    /* Wall or loop time is not asked here; see backend_deliver. */
    int (*deliver)(struct backend *backend, struct delivery *delivery);
    /* Finishes idle connections at once and running deliveries when they end (at most `grace_ms`,
     * then they end VERDICT_UNKNOWN if started, else VERDICT_TRANSIENT), then calls on_closed and
     * frees the backend. */
    void (*close)(struct backend *backend, int64_t grace_ms, void (*on_closed)(void *ctx),
                  void *ctx);
};

/* Every kind's object begins with this. */
struct backend {
    const struct backend_ops *ops;
    const struct backend_conf *conf;
};

extern const struct backend_ops backend_hve_ops;   /* hve.c */
extern const struct backend_ops backend_smtp_ops;  /* relay.c */
extern const struct backend_ops backend_acs_ops;   /* acs.c */
extern const struct backend_ops backend_graph_ops; /* graph.c */

/* The registry. Errors of open: ERR_NOTFOUND (type), ERR_INVAL; with a sentence. */
MUST_USE int backend_open(const struct backend_env *env, const struct backend_conf *conf,
                          struct backend **out, struct err *err);
size_t backend_room(const struct backend *backend);
/* Errors: ERR_FULL (room was 0), ERR_INVAL (no recipient, or more than the limit). */
MUST_USE int backend_deliver(struct backend *backend, struct delivery *delivery);
void backend_close(struct backend **backend, int64_t grace_ms, void (*on_closed)(void *ctx),
                   void *ctx);

/* What a kind allows when the configuration says nothing, with its services.md row. */
struct backend_defaults {
    const char *type;
    const char *host; /* or NULL */
    uint16_t port;
    uint32_t recipients; /* per message */
    uint64_t message_bytes;
    uint32_t concurrency;
    bool internal_only;     /* HVE: external recipients are refused by the service */
    bool asks_when_unknown; /* ACS: a delivery with maybe_sent asks the service first, so it never
                             * doubles and the lane's on_unknown is not consulted */
};
/* NULL when there is no such type. */
const struct backend_defaults *backend_defaults(const char *type);

#endif
