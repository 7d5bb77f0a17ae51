#include "backends/backend.h"

#include "gateway/base/err.h"

#include <assert.h>

const char *verdict_name(enum verdict verdict)
{
    static const char *const names[] = {
        [VERDICT_DELIVERED] = "delivered",
        [VERDICT_RECIPIENT_PERMANENT] = "recipient-permanent",
        [VERDICT_MESSAGE_PERMANENT] = "message-permanent",
        [VERDICT_THROTTLED] = "throttled",
        [VERDICT_TRANSIENT] = "transient",
        [VERDICT_ACCOUNT_BLOCKED] = "account-blocked",
        [VERDICT_CONFIG] = "config",
        [VERDICT_REFRESH] = "refresh",
        [VERDICT_UNKNOWN] = "unknown",
    };
    static_assert(sizeof names / sizeof *names == VERDICT_COUNT, "a name for every verdict");
    ASSERT((unsigned)verdict < VERDICT_COUNT);
    return names[verdict];
}

/* A kind with what it allows when the configuration is silent. Recipients are never above 50
 * (product.md 3). */
struct kind {
    const struct backend_ops *ops;
    struct backend_defaults defaults;
};

static const struct kind kinds[] = {
    {
        /* services.md 1.1, 1.3: 10 MB, 50 recipients, no documented concurrency limit; 4 is a
           polite start. */
        .ops = &backend_hve_ops,
        .defaults = {.type = "hve",
                     .host = "smtp.hve.mx.microsoft",
                     .port = 587,
                     .recipients = 50,
                     .message_bytes = 10000000,
                     .concurrency = 4,
                     .internal_only = true},
    },
    {
        /* services.md 5.1: SIZE 157286400 in EHLO; on-premises connectors take 20 connections a
           source (5.5). */
        .ops = &backend_smtp_ops,
        .defaults = {.type = "smtp",
                     .port = 25,
                     .recipients = 50,
                     .message_bytes = 157286400,
                     .concurrency = 10},
    },
    {
        /* services.md 2.6: 10 MB for the whole request after base64, 50 recipients. */
        .ops = &backend_acs_ops,
        .defaults = {.type = "acs", .recipients = 50, .message_bytes = 7500000, .concurrency = 4},
    },
    {
        /* services.md 3.3, 3.4: about 3 MB of raw message in one request, 4 requests at once per
           mailbox. */
        .ops = &backend_graph_ops,
        .defaults = {.type = "graph",
                     .host = "https://graph.microsoft.com",
                     .recipients = 50,
                     .message_bytes = 3000000,
                     .concurrency = 4},
    },
};

static const struct kind *kind_find(const char *type)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (type != NULL && strcmp(kinds[i].defaults.type, type) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

const struct backend_defaults *backend_defaults(const char *type)
{
    const struct kind *kind = kind_find(type);
    return kind != NULL ? &kind->defaults : NULL;
}

int backend_open(const struct backend_env *env, const struct backend_conf *conf,
                 struct backend **out, struct err *err)
{
    const struct kind *kind = kind_find(conf->type);
    if (kind == NULL) {
        return err_set(err, ERR_NOTFOUND,
                       "Backend \"%s\" has type \"%s\"; the types are hve, smtp, acs and graph.",
                       conf->name, conf->type != NULL ? conf->type : "");
    }
    return kind->ops->open(env, conf, out, err);
}

size_t backend_room(const struct backend *backend)
{
    return backend->ops->room(backend);
}

int backend_deliver(struct backend *backend, struct delivery *delivery)
{
    if (delivery->recipient_count == 0 ||
        delivery->recipient_count > backend->conf->recipients_per_message) {
        return ERR_INVAL;
    }
    if (backend->ops->room(backend) == 0) {
        return ERR_FULL;
    }
    return backend->ops->deliver(backend, delivery);
}

void backend_close(struct backend **backend, int64_t grace_ms, void (*on_closed)(void *ctx),
                   void *ctx)
{
    struct backend *closing = *backend;
    if (closing == NULL) {
        return;
    }
    *backend = NULL;
    closing->ops->close(closing, grace_ms, on_closed, ctx);
}
