#include "gateway/redis_check.h"

#include "gateway/base/loop.h"
#include "queue/probe.h"

#include <stdio.h>

#define WAIT_MS 4000

struct look {
    struct loop *loop;
    struct buf *out;
    struct err *err;
    int status;
};

int redis_check_tls(const struct conf_queue *conf, struct tls_context **out, struct err *err)
{
    const struct tls_client_conf tls = {.ca_file = conf->ca_file,
                                        .cert_file = conf->cert_file,
                                        .key_file = conf->key_file,
                                        .min_version = TLS_1_2,
                                        .verify = true};
    if (!conf->use_tls) {
        *out = NULL;
        return ERR_OK;
    }
    return tls_client_new(&tls, out, err);
}

static void on_looked(void *ctx, int status, struct span report, const char *why)
{
    struct look *look = ctx;
    look->status = status != 0 ? err_set(look->err, status, "%s", why) : 0;
    if (buf_append(look->out, report) != 0 && look->status == 0) {
        look->status = err_set(look->err, ERR_INVAL, "The report is too large.");
    }
    loop_stop(look->loop);
}

int redis_check(const struct conf *conf, struct buf *out, struct err *err)
{
    if (conf->queue.kind == CONF_QUEUE_EMBEDDED) {
        return ERR_OK;
    }
    struct queue_conf server = conf->queue.handle;
    struct tls_context *tls = NULL;
    int status = redis_check_tls(&conf->queue, &tls, err);
    if (status != ERR_OK) {
        return ERR_INVAL;
    }
    server.tls = tls;
    struct look look = {.loop = loop_new("check"), .out = out, .err = err};
    queue_probe(look.loop, &server, WAIT_MS, on_looked, &look);
    loop_run(look.loop);
    loop_free(&look.loop);
    tls_context_unref(&tls);
    return look.status;
}
