/* Entra tokens for applications: the client-credentials flow with a secret (services.md 4.1, 4.6).
 *
 * One source holds one token for one credential and scope; however many want it, one request runs.
 * A token is renewed in the background 20 minutes before it ends, or after two thirds of a life
 * shorter than 30 minutes, and handed out until shortly before the end, so that a token service
 * that is away for some minutes is not noticed. After a failure the next request waits: 5 minutes
 * when a setting is wrong, else from 1 second doubling to 1 minute, or what Retry-After says; who
 * asks meanwhile is told at once.
 *
 * Must not know: what the token is for. Thread: the loop's. The secret and tokens live in memory
 * that is wiped. */
#ifndef HEAVE_BACKENDS_TOKEN_H
#define HEAVE_BACKENDS_TOKEN_H

#include "backends/backend.h"
#include "backends/http_client.h"
#include "gateway/base/loop.h"

#define TOKEN_SCOPE_GRAPH "https://graph.microsoft.com/.default"
#define TOKEN_SCOPE_ACS "https://communication.azure.com/.default"
#define TOKEN_SCOPE_SMTP "https://outlook.office365.com/.default"
#define TOKEN_SCOPE_HVE "https://outlook.office.com/.default"

struct token_source;

/* Somebody who wants the token. The owner's memory, from token_get() until on_token() or
 * token_cancel(). */
struct token_waiter {
    /* `token`: lent until return; empty when there is none, then `why` says so (CONFIG, THROTTLED
     * or TRANSIENT). Never runs inside token_get(). */
    void (*on_token)(struct token_waiter *waiter, struct span token, const struct answer *why);
    void *ctx;
    struct token_waiter *next;
    struct token_waiter *prev;
    bool waiting;
};

/* `client` runs the requests and must be closed before the source is freed. `scope` is used when
 * the credential names none. Errors: ERR_INVAL, with a sentence naming the missing setting. */
MUST_USE int token_source_new(struct loop *loop, struct http_client *client,
                              const struct credential_conf *credential, const char *scope,
                              struct token_source **out, struct err *err);
/* No request runs and nobody waits. */
void token_source_free(struct token_source **source);

void token_get(struct token_source *source, struct token_waiter *waiter);
/* Does nothing for a waiter that does not wait. */
void token_cancel(struct token_source *source, struct token_waiter *waiter);
/* A service refused `token`: forget it unless a newer one has come meanwhile. */
void token_refused(struct token_source *source, struct span token);

#endif
