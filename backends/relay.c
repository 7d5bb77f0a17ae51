#include "backends/backend.h"
#include "backends/smtp_pool.h"

/* Any SMTP server that takes mail from us: an on-premises relay, an Exchange Online connector,
 * client submission. The message and its envelope pass exactly as they are. */

#define CONNECTIONS_DEFAULT 10
#define CONNECTIONS_MAX 100

static int check_auth(const struct backend_conf *conf, struct err *err)
{
    switch (conf->auth) {
    case BACKEND_AUTH_NONE:
        return 0;
    case BACKEND_AUTH_XOAUTH2:
        return err_set(err, ERR_INVAL,
                       "Backend \"%s\": auth: xoauth2 is not supported by this version; use login, "
                       "none, or a backend of type graph.",
                       conf->name);
    case BACKEND_AUTH_LOGIN:
        break;
    }
    if (conf->account_count == 0) {
        return err_set(err, ERR_INVAL, "Backend \"%s\": auth: login needs a user and a password.",
                       conf->name);
    }
    for (size_t i = 0; i < conf->account_count; i++) {
        if (conf->accounts[i].user == NULL || conf->accounts[i].password == NULL) {
            return err_set(err, ERR_INVAL,
                           "Backend \"%s\": account %zu needs a user and a password.", conf->name,
                           i + 1);
        }
    }
    return 0;
}

static uint32_t connections(const struct backend_conf *conf)
{
    uint32_t wanted = conf->concurrency > 0   ? conf->concurrency
                      : conf->connections > 0 ? conf->connections
                                              : CONNECTIONS_DEFAULT;
    return wanted < CONNECTIONS_MAX ? wanted : CONNECTIONS_MAX;
}

static int relay_open(const struct backend_env *env, const struct backend_conf *conf,
                      struct backend **out, struct err *err)
{
    if (conf->host == NULL || conf->host[0] == '\0') {
        return err_set(err, ERR_INVAL, "Backend \"%s\" needs a host.", conf->name);
    }
    int rc = check_auth(conf, err);
    if (rc != 0) {
        return rc;
    }
    struct smtp_pool_conf pool_conf = {
        .env = env,
        .conf = conf,
        .kind = KIND_RELAY,
        .connections = connections(conf),
    };
    return smtp_pool_open(&pool_conf, &backend_smtp_ops, out, err);
}

const struct backend_ops backend_smtp_ops = {
    .type = "smtp",
    .open = relay_open,
    .room = smtp_pool_room,
    .deliver = smtp_pool_deliver,
    .close = smtp_pool_close,
};
