#include "bench/load/load.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <errno.h>
#include <signal.h>

enum {
    RETRY_FIRST_MS = 100,
    RETRY_LAST_MS = 5000,
    RETRY_WISH_MAX_MS = 60000,
    RETRY_GIVE_UP_MS = 600000,
};
#define PIECE_BYTES ((size_t)65536)

static struct load_worker *worker_at(const struct load *load, size_t index)
{
    return (void *)(load->workers + index * load->ops->worker_bytes);
}

/* ---- Handing out ---- */

static bool all_taken(const struct load *load)
{
    return load->stopped || load->taken == load->options->messages;
}

/* Messages that may have been handed out by now: number n is due n/rate seconds after the start. */
static uint64_t allowance(const struct load *load)
{
    if (load->options->rate == 0) {
        return UINT64_MAX;
    }
    uint64_t passed_us = (uint64_t)(clock_mono_us() - load->start_us);
    /* Whole seconds apart, so that nothing overflows in years. */
    return 1 + passed_us / 1000000 * load->options->rate +
           passed_us % 1000000 * load->options->rate / 1000000;
}

static void on_pace(void *ctx);

static void arm_pace(struct load *load)
{
    if (loop_timer_active(&load->pace)) {
        return;
    }
    uint64_t rate = load->options->rate;
    uint64_t due_us = load->taken / rate * 1000000 + load->taken % rate * 1000000 / rate;
    int64_t passed_us = clock_mono_us() - load->start_us;
    int64_t wait_us = (int64_t)due_us - passed_us;
    loop_timer_start(load->loop, &load->pace, wait_us > 0 ? (wait_us + 999) / 1000 : 0, on_pace,
                     load);
}

static void put_idle(struct load_worker *worker)
{
    struct load *load = worker->load;
    worker->idle = true;
    worker->next_idle = NULL;
    if (load->idle_last != NULL) {
        load->idle_last->next_idle = worker;
    } else {
        load->idle_first = worker;
    }
    load->idle_last = worker;
}

static struct load_worker *take_idle(struct load *load)
{
    struct load_worker *worker = load->idle_first;
    if (worker != NULL) {
        load->idle_first = worker->next_idle;
        load->idle_last = load->idle_first != NULL ? load->idle_last : NULL;
        worker->next_idle = NULL;
        worker->idle = false;
    }
    return worker;
}

static void end_idle(struct load *load)
{
    loop_timer_stop(&load->pace);
    for (struct load_worker *w = take_idle(load); w != NULL; w = take_idle(load)) {
        load->ops->end(w);
    }
}

static void send_again(void *ctx)
{
    struct load_worker *worker = ctx;
    struct load *load = worker->load;
    if (load->stopped) {
        worker->number = 0;
        load->tally.failed++;
        load_next(worker);
        return;
    }
    load->tally.retried++;
    load->ops->send(worker);
}

void load_next(struct load_worker *worker)
{
    struct load *load = worker->load;
    ASSERT(!worker->idle);
    if (worker->number != 0) {
        loop_timer_start(load->loop, &worker->timer, worker->wait_ms, send_again, worker);
        return;
    }
    if (all_taken(load)) {
        load->ops->end(worker);
        return;
    }
    if (load->taken >= allowance(load)) {
        put_idle(worker);
        arm_pace(load);
        return;
    }
    worker->number = ++load->taken;
    worker->taken_ms = loop_now_ms(load->loop);
    worker->wait_ms = 0;
    if (all_taken(load)) {
        end_idle(load);
    }
    load->ops->send(worker);
}

static void on_pace(void *ctx)
{
    struct load *load = ctx;
    uint64_t allowed = allowance(load);
    while (load->idle_first != NULL && (all_taken(load) || load->taken < allowed)) {
        load_next(take_idle(load));
    }
    if (load->idle_first != NULL) {
        arm_pace(load);
    }
}

/* Whoever waits for a retry gives up at once; end_idle() frees the others. */
static void stop_handing_out(struct load *load)
{
    load->stopped = true;
    for (size_t i = 0; i < load->options->connections; i++) {
        struct load_worker *worker = worker_at(load, i);
        if (loop_timer_active(&worker->timer)) {
            loop_timer_start(load->loop, &worker->timer, 0, send_again, worker);
        }
    }
    end_idle(load);
}

static void on_end(void *ctx)
{
    stop_handing_out(ctx);
}

/* What is in hand is still finished and counted; a second signal ends the process as usual. */
static void on_signal(uv_signal_t *handle, int number)
{
    struct load *load = handle->data;
    (void)number;
    for (size_t i = 0; i < LOAD_SIGNALS; i++) {
        (void)uv_signal_stop(&load->signals[i]);
    }
    stop_handing_out(load);
}

/* ---- Results ---- */

void load_accepted(struct load_worker *worker, uint64_t recipients, struct span id)
{
    struct load *load = worker->load;
    ASSERT(worker->number != 0);
    load->settled_us = clock_mono_us();
    histogram_add(&load->tally.latency, (uint64_t)(load->settled_us - worker->begin_us));
    load->tally.accepted++;
    load->tally.recipients += recipients;
    load->tally.bytes += buf_len(&load->content.head) + buf_len(&load->content.rest);
    if (load->ids != NULL && id.len > 0) {
        (void)fprintf(load->ids, "%.*s\n", SPAN_FMT(id)); /* load_release() sees the error */
    }
    worker->number = 0;
}

void load_error(struct load *load, const char *kind, const char *why)
{
    /* The first of a kind is shown, the others are only counted. */
    if (tally_error(&load->tally, kind) == 1 && !load->fatal) {
        (void)fprintf(stderr, "heave-load: %s: %s\n", kind, why);
    }
}

void load_failed(struct load_worker *worker, const struct load_failure *failure)
{
    struct load *load = worker->load;
    ASSERT(worker->number != 0);
    load_error(load, failure->kind, failure->why);
    load->settled_us = clock_mono_us();
    bool patient = loop_now_ms(load->loop) - worker->taken_ms < RETRY_GIVE_UP_MS;
    if (!load->options->retry || !failure->temporary || !patient || load->stopped) {
        worker->number = 0;
        load->tally.failed++;
        return;
    }
    int64_t wish_ms = failure->wait_ms < RETRY_WISH_MAX_MS ? failure->wait_ms : RETRY_WISH_MAX_MS;
    int64_t usual_ms = worker->wait_ms > 0 ? worker->wait_ms * 2 : RETRY_FIRST_MS;
    usual_ms = usual_ms < RETRY_LAST_MS ? usual_ms : RETRY_LAST_MS;
    worker->wait_ms = wish_ms > usual_ms ? wish_ms : usual_ms;
}

void load_fatal(struct load *load, const char *sentence)
{
    if (!load->fatal) {
        load->fatal = true;
        (void)fprintf(stderr, "heave-load: %s\n", sentence);
        stop_handing_out(load);
    }
}

void load_worker_over(struct load_worker *worker)
{
    struct load *load = worker->load;
    ASSERT(worker->number == 0 && worker->stream == NULL);
    if (++load->over_count == load->options->connections) {
        loop_timer_stop(&load->end);
        loop_stop(load->loop);
    }
}

bool load_complete(const struct load *load)
{
    bool all = load->taken == load->options->messages || load->options->duration_s > 0;
    return all && !load->fatal && load->tally.failed == 0 && load->tally.accepted > 0 &&
           load->tally.accepted == load->taken &&
           load->tally.recipients == load->taken * load->options->recipients;
}

/* ---- Connections ---- */

bool load_connect(struct load_worker *worker, struct tls_context *tls, const struct stream_ops *ops)
{
    struct load *load = worker->load;
    struct stream_target target = {
        .host = load->options->host,
        .port = load->options->port,
        .tls = tls,
        .connect_timeout_ms = (int64_t)load->options->timeout_s * 1000,
    };
    if (stream_connect(load->loop, &target, ops, worker, NULL, &worker->stream) == 0) {
        return true;
    }
    worker->stream = NULL;
    load_fatal(load, "The server's name cannot be connected to.");
    load_failed(worker, &(struct load_failure){.kind = "connect", .why = load->options->host});
    return false;
}

static const char *kind_of_status(bool opened, int status)
{
    if (status == ERR_TIMEOUT) {
        return "timeout";
    }
    if (status == ERR_DENIED) {
        return "certificate";
    }
    if (status == ERR_PROTO) {
        return "tls";
    }
    if (!opened) {
        return "connect";
    }
    return status == ERR_CLOSED ? "closed" : "io";
}

void load_lost(struct load_worker *worker, bool opened, int status, const char *why)
{
    if (status == ERR_DENIED) {
        load_fatal(worker->load, why);
    }
    load_failed(worker, &(struct load_failure){.kind = kind_of_status(opened, status),
                                               .why = why,
                                               .temporary = status != ERR_DENIED});
}

void load_content_begin(struct load_worker *worker)
{
    char head[CONTENT_HEAD_MAX];
    worker->sent_bytes = 0;
    worker->begin_us = clock_mono_us();
    if (stream_write(worker->stream, content_head(&worker->load->content, worker->number, head)) !=
        0) {
        stream_abort(worker->stream); /* on_close settles the message */
    }
}

bool load_content_pump(struct load_worker *worker)
{
    struct span rest = buf_span(&worker->load->content.rest);
    while (worker->sent_bytes < rest.len && !stream_above_high_water(worker->stream)) {
        size_t left = rest.len - worker->sent_bytes;
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        if (stream_write(worker->stream, span_make(rest.data + worker->sent_bytes, piece)) != 0) {
            stream_abort(worker->stream); /* on_close settles the message */
            return false;
        }
        worker->sent_bytes += piece;
    }
    return worker->sent_bytes == rest.len;
}

/* ---- The run ---- */

static int open_tls(struct load *load, struct err *err)
{
    if (!load->options->tls && !load->options->tls_implicit) {
        return 0;
    }
    struct tls_client_conf conf = {
        .ca_file = load->options->ca_file, .min_version = TLS_1_2, .verify = true};
    return tls_client_new(&conf, &load->tls, err);
}

static int open_ids(struct load *load, struct err *err)
{
    if (load->options->ids == NULL) {
        return 0;
    }
    load->ids = fopen(load->options->ids, "we");
    if (load->ids == NULL) {
        return err_set(err, ERR_IO, "%s cannot be written: %s.", load->options->ids,
                       strerror(errno));
    }
    return 0;
}

static int watch_signals(struct load *load, struct err *err)
{
    static const int NUMBERS[LOAD_SIGNALS] = {SIGINT, SIGTERM};
    for (size_t i = 0; i < LOAD_SIGNALS; i++) {
        load->signals[i].data = load;
        if (uv_signal_init(loop_uv(load->loop), &load->signals[i]) != 0 ||
            uv_signal_start(&load->signals[i], on_signal, NUMBERS[i]) != 0) {
            return err_set(err, ERR_IO, "Signals cannot be watched.");
        }
    }
    return 0;
}

static int prepare(struct load *load, struct err *err)
{
    unsigned char run[6];
    codec_random(run, sizeof(run));
    codec_hex(run, sizeof(run), load->run);
    int rc = open_tls(load, err);
    if (rc == 0) {
        rc = open_ids(load, err);
    }
    if (rc == 0) {
        rc = load->ops->prepare(load, err);
    }
    return rc == 0 ? watch_signals(load, err) : rc;
}

int load_run(struct load *load, const struct load_options *options, struct err *err)
{
    *load = (struct load){
        .options = options,
        .ops = options->kind == LOAD_SMTP ? &LOAD_SMTP_OPS : &LOAD_HTTP_OPS,
        .loop = loop_new("load"),
    };
    /* The text, its escapes, the recipients of a request, and the end. */
    content_init(&load->content,
                 options->size_bytes + options->size_bytes / 32 + options->recipients * 320 + 1024);
    int rc = prepare(load, err);
    if (rc != 0) {
        return rc;
    }
    load->start_us = clock_mono_us();
    load->settled_us = load->start_us;
    if (options->duration_s > 0) {
        loop_timer_start(load->loop, &load->end, (int64_t)options->duration_s * 1000, on_end, load);
    }
    load->workers = mem_zero(options->connections * load->ops->worker_bytes);
    for (size_t i = 0; i < options->connections; i++) {
        struct load_worker *worker = worker_at(load, i);
        worker->load = load;
        load_next(worker);
    }
    loop_run(load->loop);
    return 0;
}

int load_release(struct load *load)
{
    int rc = 0;
    if (load->ids != NULL) {
        bool bad = ferror(load->ids) != 0;
        rc = fclose(load->ids) != 0 || bad ? ERR_IO : 0;
    }
    loop_free(&load->loop);
    load->ops->release(load);
    content_release(&load->content);
    if (load->tls != NULL) {
        tls_context_unref(&load->tls);
    }
    mem_free(load->workers);
    load->workers = NULL;
    return rc;
}
