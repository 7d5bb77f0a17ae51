#include "gateway/serve.h"

#include "gateway/base/failpoint.h"
#include "gateway/base/log.h"
#include "gateway/base/tls.h"
#include "gateway/dispatch.h"
#include "gateway/front.h"
#include "gateway/redis_check.h"
#include "queue/embedded.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

/* Order of a drain: the ingress fronts stop accepting and finish; the couriers finish what was
 * claimed; then the admin front, the threads, the embedded Redis. Invariant: every thread object is
 * made before its thread runs and freed after it was joined; in between only its own loop touches
 * it. */

#define THREADS_MAX 64
#define LISTENERS_MAX 64
/* The embedded Redis must not grow past what the queue admits and keeps by more than this, for
 * records and the index. */
#define REDIS_HEADROOM (512ULL * 1024 * 1024)
/* The connections are tried before the embedded Redis has made its socket. A start that fails is
 * said by embedded_ops.on_down at once, one that takes longer by the connections after this. */
#define EMBEDDED_START_MS 5000
#define RELOADS_MAX 1000

struct worker {
    struct serve *serve;
    struct loop *loop;
    uv_thread_t thread;
    bool running;
    struct front *front;       /* ingress */
    struct dispatch *dispatch; /* delivery */
    char name[32];
    int64_t drain_timeout_ms; /* set before the drain is posted */
};

struct serve {
    struct loop *loop;
    struct conf *conf;
    const char *file;
    struct events *events;
    struct policy *policy;
    struct tls_context *smtp_tls;
    struct tls_context *http_tls;
    struct tls_context *redis_tls;
    char *socket_path;
    struct queue_conf queue;
    struct embedded *embedded;
    struct courier_pace pace;
    struct admission *admission; /* by the limits the process started with */
    atomic_size_t connections[LISTENERS_MAX];
    struct front *admin;
    struct worker workers[THREADS_MAX];
    size_t worker_count;
    size_t drained; /* workers that have */
    bool draining;
    int exit_code;
    uv_signal_t signals[3];
    /* Snapshots of earlier reloads: sessions and routes may still point into them; freed at the
     * end. */
    struct conf *old[RELOADS_MAX];
    size_t old_count;
};

/* Snapshots. */

static bool listener_needs_tls(const struct conf *conf)
{
    for (size_t i = 0; i < conf->listener_count; i++) {
        if (conf->listeners[i].tls != CONF_TLS_OFF) {
            return true;
        }
    }
    return false;
}

static int make_tls(const struct conf *conf, bool offer_h2, struct tls_context **out,
                    struct err *err)
{
    *out = NULL;
    if (!listener_needs_tls(conf)) {
        return ERR_OK;
    }
    struct tls_server_conf tls = {
        .cert_file = conf->tls.cert_file,
        .key_file = conf->tls.key_file,
        .min_version = conf->tls.min_version,
        .offer_h2 = offer_h2,
    };
    return tls_server_new(&tls, out, err);
}

/* What a configuration becomes for the running process. Nothing is changed when it fails. */
struct snapshot {
    struct policy *policy;
    struct tls_context *smtp_tls;
    struct tls_context *http_tls;
};

static void snapshot_release(struct snapshot *snapshot)
{
    policy_unref(&snapshot->policy);
    tls_context_unref(&snapshot->smtp_tls);
    tls_context_unref(&snapshot->http_tls);
}

static int snapshot_make(const struct conf *conf, struct snapshot *out, struct err *err)
{
    *out = (struct snapshot){0};
    int status = policy_new(conf->clients, conf->client_count, &out->policy, err);
    status = status == ERR_OK ? make_tls(conf, false, &out->smtp_tls, err) : status;
    status = status == ERR_OK ? make_tls(conf, true, &out->http_tls, err) : status;
    if (status != ERR_OK) {
        snapshot_release(out);
    }
    return status;
}

static void snapshot_take(struct serve *serve, struct snapshot *snapshot)
{
    policy_unref(&serve->policy);
    tls_context_unref(&serve->smtp_tls);
    tls_context_unref(&serve->http_tls);
    serve->policy = snapshot->policy;
    serve->smtp_tls = snapshot->smtp_tls;
    serve->http_tls = snapshot->http_tls;
}

/* Waking couriers. */

static void wake_couriers(void *ctx)
{
    struct serve *serve = ctx;
    for (size_t i = 0; i < serve->worker_count; i++) {
        if (serve->workers[i].dispatch != NULL) {
            dispatch_hint(serve->workers[i].dispatch);
        }
    }
}

static struct front_conf front_conf_of(struct serve *serve, bool admin)
{
    return (struct front_conf){
        .conf = serve->conf,
        .policy = serve->policy,
        .smtp_tls = serve->smtp_tls,
        .http_tls = serve->http_tls,
        .queue = &serve->queue,
        .events = serve->events,
        .admission = serve->admission,
        .connections = serve->connections,
        .admin = admin,
        .on_enqueued = wake_couriers,
        .ctx = serve,
    };
}

/* Reload. */

struct reload {
    struct worker *worker;
    struct front_conf conf;
};

static void apply_reload(void *ctx)
{
    struct reload *reload = ctx;
    if (reload->worker->front != NULL) {
        front_reconfigure(reload->worker->front, &reload->conf);
    }
    policy_unref(&reload->conf.policy);
    tls_context_unref(&reload->conf.smtp_tls);
    tls_context_unref(&reload->conf.http_tls);
    mem_free(reload);
}

static void post_reload(struct worker *worker)
{
    struct serve *serve = worker->serve;
    struct reload *reload = mem_zero(sizeof *reload);
    reload->worker = worker;
    reload->conf = front_conf_of(serve, false);
    reload->conf.policy = policy_ref(serve->policy);
    reload->conf.smtp_tls = serve->smtp_tls != NULL ? tls_context_ref(serve->smtp_tls) : NULL;
    reload->conf.http_tls = serve->http_tls != NULL ? tls_context_ref(serve->http_tls) : NULL;
    loop_post(worker->loop, apply_reload, reload);
}

static void report_mistakes(const struct conf_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        const struct conf_mistake *mistake = &report->mistakes[i];
        log_event(LOG_ERROR, "config", LOG_TEXT("file", report->file),
                  LOG_INT("line", mistake->line), LOG_INT("column", mistake->column),
                  LOG_TEXT("mistake", mistake->message), LOG_TEXT("expected", mistake->expected));
    }
}

static void reload_failed(struct serve *serve, const char *why)
{
    events_config_reload(serve->events, false);
    log_event(LOG_ERROR, "reload", LOG_TEXT("result", "kept the old configuration"),
              LOG_TEXT("why", why));
}

/* Backends live in the couriers until a restart, and routes name them by index: other backends wait
 * for that restart. */
static bool same_backends(const struct conf *a, const struct conf *b)
{
    if (a->backend_count != b->backend_count) {
        return false;
    }
    for (size_t i = 0; i < a->backend_count; i++) {
        if (strcmp(a->backends[i].conf.name, b->backends[i].conf.name) != 0) {
            return false;
        }
    }
    return true;
}

/* Nobody would claim what was accepted into a lane the couriers do not know. */
static bool lanes_known(const struct conf *before, const struct conf *after)
{
    for (size_t i = 0; i < after->lane_count; i++) {
        size_t j = 0;
        while (j < before->lane_count && strcmp(before->lanes[j].name, after->lanes[i].name) != 0) {
            j++;
        }
        if (j == before->lane_count) {
            return false;
        }
    }
    return true;
}

static void apply_conf(struct serve *serve, struct conf *conf, struct snapshot *snapshot)
{
    struct buf restart;
    buf_init(&restart, 64 * 1024);
    /* Against what the process started with: an earlier reload may have been told to wait for a
     * restart too. */
    const struct conf *started = serve->old_count > 0 ? serve->old[0] : serve->conf;
    const char *text = conf_restart_needed(started, conf, &restart) == ERR_OK ? buf_text(&restart)
                                                                              : NULL;
    serve->old[serve->old_count++] = serve->conf;
    serve->conf = conf;
    snapshot_take(serve, snapshot);
    log_configure(conf->log.level, conf->log.form, conf->log.full_addresses);
    for (size_t i = 0; i < serve->worker_count; i++) {
        post_reload(&serve->workers[i]);
        FAILPOINT("reload-applied");
    }
    struct front_conf admin = front_conf_of(serve, true);
    front_reconfigure(serve->admin, &admin);
    events_config_reload(serve->events, true);
    log_event(LOG_INFO, "reload", LOG_TEXT("result", "taken"),
              LOG_TEXT("restart_needed_for", text != NULL ? text : ""));
    buf_release(&restart);
}

static void reload(struct serve *serve)
{
    FAILPOINT("reload-before");
    struct conf_report report;
    conf_report_init(&report);
    struct conf *conf = NULL;
    struct snapshot snapshot;
    struct err err;
    if (conf_load(serve->file, &conf, &report) != ERR_OK) {
        report_mistakes(&report);
        reload_failed(serve, "the file has mistakes");
    } else if (!same_backends(serve->conf, conf)) {
        conf_unref(&conf);
        reload_failed(serve, "backends were added, removed or reordered, which needs a restart");
    } else if (!lanes_known(serve->old_count > 0 ? serve->old[0] : serve->conf, conf)) {
        conf_unref(&conf);
        reload_failed(serve, "a lane was added, which needs a restart");
    } else if (serve->old_count == RELOADS_MAX) {
        conf_unref(&conf);
        reload_failed(serve, "too many reloads since the start, restart to go on");
    } else if (snapshot_make(conf, &snapshot, &err) != ERR_OK) {
        conf_unref(&conf);
        reload_failed(serve, err.text);
    } else {
        apply_conf(serve, conf, &snapshot);
    }
    conf_report_release(&report);
}

/* Drain. */

static void on_embedded_stopped(void *ctx)
{
    struct serve *serve = ctx;
    serve->embedded = NULL;
    loop_stop(serve->loop);
}

static void on_admin_drained(void *ctx)
{
    struct serve *serve = ctx;
    serve->admin = NULL;
    if (serve->embedded != NULL) {
        embedded_stop(serve->embedded, on_embedded_stopped, serve);
        return;
    }
    loop_stop(serve->loop);
}

/* On the main loop: one more worker has ended. */
static void on_worker_ended(void *ctx)
{
    struct worker *worker = ctx;
    struct serve *serve = worker->serve;
    serve->drained++;
    if (serve->drained == serve->worker_count && serve->admin != NULL) {
        front_drain(serve->admin, 1000, on_admin_drained, serve);
    }
}

/* On the worker's loop. */
static void on_worker_drained(void *ctx)
{
    struct worker *worker = ctx;
    worker->front = NULL;
    loop_stop(worker->loop);
    loop_post(worker->serve->loop, on_worker_ended, worker);
}

static void drain_worker(void *ctx)
{
    struct worker *worker = ctx;
    int64_t timeout_ms = worker->drain_timeout_ms;
    if (worker->front != NULL) {
        front_drain(worker->front, timeout_ms, on_worker_drained, worker);
    } else {
        dispatch_drain(worker->dispatch, timeout_ms, on_worker_drained, worker);
    }
}

static void drain(struct serve *serve)
{
    if (serve->draining) {
        log_event(LOG_WARN, "stop", LOG_TEXT("how", "at once, on the second signal"));
        if (serve->embedded != NULL && embedded_pid(serve->embedded) > 0) {
            (void)kill(embedded_pid(serve->embedded), SIGTERM);
        }
        _exit(1);
    }
    serve->draining = true;
    FAILPOINT("drain-begun");
    log_event(LOG_INFO, "stop", LOG_TEXT("how", "draining"),
              LOG_INT("timeout_ms", serve->conf->drain_timeout_ms));
    front_set_draining(serve->admin);
    for (size_t i = 0; i < serve->worker_count; i++) {
        serve->workers[i].drain_timeout_ms = serve->conf->drain_timeout_ms;
        loop_post(serve->workers[i].loop, drain_worker, &serve->workers[i]);
    }
    if (serve->worker_count == 0) {
        front_drain(serve->admin, 1000, on_admin_drained, serve);
    }
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct serve *serve = handle->data;
    if (number == SIGHUP) {
        /* Fronts that drain are half gone and take no new configuration. */
        if (!serve->draining) {
            reload(serve);
        }
        return;
    }
    drain(serve);
}

static void watch_signals(struct serve *serve)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    (void)signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < 3; i++) {
        int status = uv_signal_init(loop_uv(serve->loop), &serve->signals[i]);
        ASSERT(status == 0);
        serve->signals[i].data = serve;
        status = uv_signal_start(&serve->signals[i], on_signal, numbers[i]);
        ASSERT(status == 0);
    }
}

/* Start. */

static void on_embedded_up(void *ctx)
{
    (void)ctx;
    log_event(LOG_INFO, "embedded", LOG_TEXT("state", "up"));
}

static void on_embedded_down(void *ctx, const char *why)
{
    (void)ctx;
    log_event(LOG_ERROR, "embedded", LOG_TEXT("state", "down"), LOG_TEXT("why", why));
}

struct disk_news {
    struct worker *worker;
    bool full;
};

static void apply_disk_news(void *ctx)
{
    struct disk_news *news = ctx;
    if (news->worker->front != NULL) {
        front_set_disk_full(news->worker->front, news->full);
    }
    mem_free(news);
}

static void on_embedded_disk(void *ctx, bool low, uint64_t free_bytes)
{
    struct serve *serve = ctx;
    log_event(
        low ? LOG_ERROR : LOG_INFO, "embedded",
        LOG_TEXT("state", low ? "disk full" : "disk has room"),
        LOG_INT("free_bytes", (int64_t)free_bytes),
        LOG_TEXT("why", low ? "The disk under queue.data_dir has less than queue.disk_reserve "
                              "left: new messages are refused, delivery goes on."
                            : "New messages are taken again."));
    for (size_t i = 0; i < serve->worker_count && !serve->draining; i++) {
        struct disk_news *news = mem_zero(sizeof *news);
        *news = (struct disk_news){.worker = &serve->workers[i], .full = low};
        loop_post(serve->workers[i].loop, apply_disk_news, news);
    }
}

static const struct embedded_ops embedded_callbacks = {
    .on_up = on_embedded_up, .on_down = on_embedded_down, .on_disk = on_embedded_disk};

/* What has ended has budgets of its own: were they not added, a full history would close the lanes
 * of an empty queue. 0: no limit. */
static uint64_t redis_memory(const struct queue_conf *queue)
{
    return queue->max_bytes > 0 ? queue->max_bytes * 2 + queue->history_bytes +
                                      queue->dead_letter_bytes + REDIS_HEADROOM
                                : 0;
}

static int open_redis(struct serve *serve, struct err *err)
{
    const struct conf_queue *conf = &serve->conf->queue;
    serve->queue = conf->handle;
    events_durability(serve->events, queue_durability_name(serve->queue.durability));
    if (conf->kind == CONF_QUEUE_STANDALONE) {
        int status = redis_check_tls(conf, &serve->redis_tls, err);
        serve->queue.tls = serve->redis_tls;
        return status;
    }
    serve->socket_path = embedded_socket_path(conf->data_dir);
    serve->queue.socket_path = serve->socket_path;
    serve->queue.managed = true;
    serve->queue.start_ms = EMBEDDED_START_MS;
    struct embedded_conf embedded = {
        .data_dir = conf->data_dir,
        .server_program = conf->server_program,
        .durability = serve->queue.durability,
        .disk_reserve_bytes = conf->disk_reserve_bytes,
        .max_memory_bytes = redis_memory(&serve->queue),
    };
    return embedded_start(serve->loop, &embedded, &embedded_callbacks, serve, &serve->embedded,
                          err);
}

static struct worker *add_worker(struct serve *serve, const char *kind, size_t number)
{
    struct worker *worker = &serve->workers[serve->worker_count++];
    worker->serve = serve;
    (void)snprintf(worker->name, sizeof worker->name, "%s-%zu", kind, number);
    worker->loop = loop_new(worker->name);
    return worker;
}

static int make_workers(struct serve *serve, struct err *err)
{
    const struct conf *conf = serve->conf;
    size_t ingress = (conf->roles & CONF_ROLE_INGEST) != 0 ? conf->ingress_threads : 0;
    size_t delivery = (conf->roles & CONF_ROLE_DISPATCH) != 0 ? conf->delivery_threads : 0;
    if (conf->listener_count > LISTENERS_MAX) {
        return err_set(err, ERR_LIMIT, "More than %d listeners are configured.", LISTENERS_MAX);
    }
    if (ingress + delivery > THREADS_MAX) {
        return err_set(err, ERR_LIMIT, "More than %d threads are configured.", THREADS_MAX);
    }
    int status = ERR_OK;
    for (size_t i = 0; i < ingress && status == ERR_OK; i++) {
        struct worker *worker = add_worker(serve, "ingress", i);
        struct front_conf front = front_conf_of(serve, false);
        status = front_new(worker->loop, &front, &worker->front, err);
    }
    for (size_t i = 0; i < delivery && status == ERR_OK; i++) {
        struct worker *worker = add_worker(serve, "delivery", i);
        status = dispatch_new(worker->loop, conf, &serve->queue, serve->events, &serve->pace,
                              &worker->dispatch, err);
    }
    return status;
}

static void run_worker(void *ctx)
{
    struct worker *worker = ctx;
    loop_run(worker->loop);
}

static int start_workers(struct serve *serve, struct err *err)
{
    for (size_t i = 0; i < serve->worker_count; i++) {
        if (uv_thread_create(&serve->workers[i].thread, run_worker, &serve->workers[i]) != 0) {
            return err_set(err, ERR_IO, "A thread could not be started.");
        }
        serve->workers[i].running = true;
    }
    return ERR_OK;
}

static int start(struct serve *serve, struct err *err)
{
    struct snapshot snapshot;
    int status = snapshot_make(serve->conf, &snapshot, err);
    if (status != ERR_OK) {
        return status;
    }
    snapshot_take(serve, &snapshot);
    status = open_redis(serve, err);
    status = status == ERR_OK ? make_workers(serve, err) : status;
    if (status == ERR_OK) {
        struct front_conf admin = front_conf_of(serve, true);
        status = front_new(serve->loop, &admin, &serve->admin, err);
    }
    events_expect_redis(serve->events, (int)serve->worker_count + 1);
    return status == ERR_OK ? start_workers(serve, err) : status;
}

static void finish(struct serve *serve)
{
    for (size_t i = 0; i < serve->worker_count; i++) {
        struct worker *worker = &serve->workers[i];
        if (worker->running) {
            (void)uv_thread_join(&worker->thread);
        }
        loop_free(&worker->loop);
    }
    for (size_t i = 0; i < serve->worker_count; i++) {
        dispatch_free(&serve->workers[i].dispatch);
    }
    for (size_t i = 0; i < 3; i++) {
        uv_close((uv_handle_t *)&serve->signals[i], NULL);
    }
    (void)signal(SIGHUP, SIG_IGN); /* a late one shall not turn a good end into a bad one */
    loop_free(&serve->loop);
    struct snapshot none = {0};
    snapshot_take(serve, &none);
    tls_context_unref(&serve->redis_tls);
    admission_free(&serve->admission);
    events_free(&serve->events);
    mem_free(serve->socket_path);
    conf_unref(&serve->conf);
    for (size_t i = 0; i < serve->old_count; i++) {
        conf_unref(&serve->old[i]);
    }
}

int serve_run(struct conf *conf, const char *file)
{
    mem_setup();
    struct serve *serve = mem_zero(sizeof *serve);
    serve->conf = conf_ref(conf);
    serve->file = file;
    log_configure(conf->log.level, conf->log.form, conf->log.full_addresses);
    serve->loop = loop_new("main");
    serve->events = events_new();
    serve->admission = admission_new(&conf->admission, serve->events);
    watch_signals(serve);
    struct err err = {0};
    if (failpoint_setup(&err) != ERR_OK || start(serve, &err) != ERR_OK) {
        (void)fprintf(stderr, "heave: %s\n", err.text);
        if (serve->embedded != NULL && embedded_pid(serve->embedded) > 0) {
            (void)kill(embedded_pid(serve->embedded), SIGTERM);
        }
        /* Half-made loops hold handles of half-made objects; the process ends here anyway. */
        _exit(1);
    }
    log_event(
        LOG_INFO, "start", LOG_TEXT("version", HEAVE_VERSION), LOG_TEXT("hostname", conf->hostname),
        LOG_INT("ingress", (conf->roles & CONF_ROLE_INGEST) != 0 ? conf->ingress_threads : 0),
        LOG_INT("delivery", (conf->roles & CONF_ROLE_DISPATCH) != 0 ? conf->delivery_threads : 0));
    loop_run(serve->loop);
    finish(serve);
    log_event(LOG_INFO, "stop", LOG_TEXT("how", "done"));
    mem_free(serve);
    return 0;
}
