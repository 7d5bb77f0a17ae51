#include "gateway/digester.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/digest_mail.h"
#include "gateway/intake_batches.h"

#define LOOK_EVERY_MS 1000
#define HOLD_MS 60000
#define KEY_HOLD_MS (HOLD_MS / 2) /* over when the collection is handed out again */
#define ARENA_MAX ((size_t)64 << 20)
#define MAIL_MAX ((size_t)8 << 20)

struct digester {
    struct loop *loop;
    struct queue *queue;
    const struct intake_conf *conf;
    struct events *events;
    struct loop_timer timer;
    bool busy;
    bool stopped;
};

/* One collection on its way; its memory is lent to the queue until the enqueue has ended. */
struct sending {
    struct digester *digester;
    struct arena arena;
    struct buf mail;
    struct message message;
    uint32_t place;
    size_t collected;
    struct digest_about about;
    struct route_plan plan;
    struct queue_idempotency once;
    char owner[QUEUE_OWNER_MAX];
    int64_t begun_us;
};

static void look(void *ctx);

static void look_again(struct digester *digester, int64_t delay_ms)
{
    digester->busy = false;
    if (!digester->stopped) {
        loop_timer_start(digester->loop, &digester->timer, delay_ms, look, digester);
    }
}

static void sending_free(struct sending *sending)
{
    buf_release(&sending->mail);
    arena_release(&sending->arena);
    mem_free(sending);
}

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *enqueued)
{
    struct sending *sending = ctx;
    struct digester *digester = sending->digester;
    const struct message *message = &sending->message;
    char client[128];
    (void)snprintf(client, sizeof client, "%.*s", SPAN_FMT(message->client));
    if (status == ERR_OK) {
        digest_done(digester->queue, sending->place, message->id);
    } else {
        if (status != ERR_TIMEOUT && status != ERR_CLOSED) {
            queue_key_give_back(digester->queue, &sending->once);
        }
        events_digest_held(digester->events, message->id, client,
                           status == ERR_FULL ? "The queue is full."
                                              : "The queue cannot be reached.");
    }
    if (status == ERR_OK && !enqueued->replayed) {
        events_message(digester->events, &(struct event_message){
                                             .id = message->id,
                                             .protocol = "digest",
                                             .client = client,
                                             .lane = message->lane,
                                             .verdict = intake_verdict_name(INTAKE_ACCEPTED),
                                             .reverse_path = message->reverse_path,
                                             .bytes = message_bytes(message),
                                             .recipients = sending->plan.recipient_count,
                                             .batches = message->batch_count,
                                             .accept_us = clock_mono_us() - sending->begun_us,
                                         });
    }
    sending_free(sending);
    look_again(digester, status == ERR_OK ? 0 : LOOK_EVERY_MS);
}

static size_t lane_index(const struct intake_conf *conf, struct span lane)
{
    size_t normal = 0;
    for (size_t i = 0; i < conf->lane_count; i++) {
        if (span_eq(span_of(conf->lane_names[i]), lane)) {
            return i;
        }
        normal = strcmp(conf->lane_names[i], "normal") == 0 ? i : normal;
    }
    return normal; /* the lane has gone since */
}

static int plan(struct sending *sending, const struct digest *digest, struct err *err)
{
    const struct intake_conf *conf = sending->digester->conf;
    struct digest_mail facts;
    int status = digest_about_read(digest->about, &sending->arena, &sending->about);
    if (status != ERR_OK) {
        return err_set(err, status, "What the collection says about itself cannot be read.");
    }
    int64_t now_ms = queue_wall_ms(sending->digester->queue);
    status = digest_mail_compose(digest, sending->about.reverse_path, conf->hostname, now_ms,
                                 &sending->arena, &sending->mail, &facts, err);
    if (status != ERR_OK) {
        return status;
    }
    const struct digest_about *about = &sending->about;
    size_t lane = lane_index(conf, about->lane);
    struct route_request request = {
        .lane = span_of(conf->lane_names[lane]),
        .client = about->client,
        .sender = about->reverse_path,
        .message_bytes = buf_len(&sending->mail),
        .recipients = about->recipients,
        .recipient_count = about->recipient_count,
    };
    status = route_plan(conf->route, &request, &sending->arena, &sending->plan);
    if (status == ERR_OK && (sending->plan.refused_count > 0 || sending->plan.batch_count == 0)) {
        return err_set(err, ERR_INVAL, "A recipient of the digest has no route any more.");
    }
    struct batch *batches = status == ERR_OK ? intake_batches(conf->route, &sending->plan,
                                                              request.lane, &sending->arena)
                                             : NULL;
    if (batches == NULL) {
        return err_set(err, ERR_NOMEM, "There is no memory for the digest.");
    }
    struct span mail = buf_span(&sending->mail);
    sending->message = (struct message){
        .id = digest->id,
        .client = about->client,
        .lane = request.lane,
        .reverse_path = about->reverse_path,
        .header_from = facts.from,
        .message_id = facts.message_id,
        .subject = facts.subject,
        .source = SPAN_LIT("digest"),
        .accepted_ms = now_ms,
        .expires_ms = now_ms + conf->lane_expires_ms[lane],
        .flags = (codec_has_8bit(mail) ? MESSAGE_8BIT : 0u) |
                 (about->smtputf8 ? MESSAGE_SMTPUTF8 : 0u),
        .body = mail,
        .batches = batches,
        .batch_count = sending->plan.batch_count,
    };
    return ERR_OK;
}

/* What was handed out is lent for this call alone. */
static int keep(struct sending *sending, const struct digest *digest, struct digest *out)
{
    struct digest_message *messages = arena_alloc(&sending->arena,
                                                  (digest->count + 1) * sizeof *messages);
    if (messages == NULL) {
        return ERR_NOMEM;
    }
    *out = *digest;
    out->id = arena_dup(&sending->arena, digest->id);
    out->about = arena_dup(&sending->arena, digest->about);
    out->messages = messages;
    bool kept = out->id.data != NULL && out->about.data != NULL;
    for (size_t i = 0; i < digest->count; i++) {
        messages[i] = digest->messages[i];
        messages[i].bytes = arena_dup(&sending->arena, digest->messages[i].bytes);
        kept = kept && messages[i].bytes.data != NULL;
    }
    return kept ? ERR_OK : ERR_NOMEM;
}

static void put_off(struct sending *sending, const char *why)
{
    struct digester *digester = sending->digester;
    events_digest_held(digester->events, sending->message.id, "", why);
    sending_free(sending);
    look_again(digester, LOOK_EVERY_MS);
}

/* What is handed out again may be stored already, under the same id: to enqueue it again would put
 * its records back to the beginning, whatever has become of them. So its key is asked first. */
static void on_key(void *ctx, int status, const struct queue_key_found *found)
{
    struct sending *sending = ctx;
    struct digester *digester = sending->digester;
    if (status != ERR_OK) {
        put_off(sending, "The queue cannot be reached.");
        return;
    }
    switch (found->state) {
    case QUEUE_KEY_FRESH:
        status = queue_enqueue(digester->queue, &sending->message, 0, &sending->once, on_enqueued,
                               sending);
        if (status != ERR_OK) {
            queue_key_give_back(digester->queue, &sending->once);
            put_off(sending, "The queue does not take it.");
        }
        return;
    case QUEUE_KEY_REPLAY:
        digest_done(digester->queue, sending->place, sending->message.id);
        sending_free(sending);
        look_again(digester, 0);
        return;
    case QUEUE_KEY_CONFLICT:
    case QUEUE_KEY_RUNNING:
        put_off(sending, "Its key is somebody else's.");
        return;
    }
    UNREACHABLE();
}

static void send_collection(struct digester *digester, const struct digest *digest)
{
    struct sending *sending = mem_zero(sizeof *sending);
    struct digest kept;
    struct err err;
    sending->digester = digester;
    sending->place = digest->place;
    sending->begun_us = clock_mono_us();
    arena_init(&sending->arena, ARENA_MAX);
    buf_init(&sending->mail, MAIL_MAX);
    int status = keep(sending, digest, &kept);
    if (status == ERR_OK) {
        status = plan(sending, &kept, &err);
    } else {
        (void)err_set(&err, status, "There is no memory for the digest.");
    }
    if (status == ERR_OK) {
        queue_key_owner(digester->queue, sending->owner);
        sending->once = (struct queue_idempotency){
            .scope = sending->about.client,
            .key = sending->about.key,
            .fingerprint = SPAN_LIT("digest"),
            .owner = span_of(sending->owner),
        };
        status = queue_key_begin(digester->queue, &sending->once, KEY_HOLD_MS, on_key, sending);
        if (status == ERR_OK) {
            return;
        }
        (void)err_set(&err, status, "The queue does not take it.");
    }
    events_digest_held(digester->events, digest->id, "", err.text);
    sending_free(sending);
    look_again(digester, LOOK_EVERY_MS);
}

static void on_taken(void *ctx, int status, const struct digest *digest)
{
    struct digester *digester = ctx;
    if (status == ERR_OK && digest != NULL) {
        send_collection(digester, digest);
        return;
    }
    if (digest != NULL) {
        events_digest_held(digester->events, digest->id, "", "A collected message cannot be read.");
    }
    look_again(digester, LOOK_EVERY_MS);
}

static void look(void *ctx)
{
    struct digester *digester = ctx;
    digester->busy = queue_clock_known(digester->queue) &&
                     digest_take(digester->queue, HOLD_MS, on_taken, digester) == 0;
    if (!digester->busy) {
        look_again(digester, LOOK_EVERY_MS);
    }
}

struct digester *digester_new(struct loop *loop, struct queue *queue,
                              const struct intake_conf *conf, struct events *events)
{
    struct digester *digester = mem_zero(sizeof *digester);
    digester->loop = loop;
    digester->queue = queue;
    digester->conf = conf;
    digester->events = events;
    loop_timer_start(loop, &digester->timer, LOOK_EVERY_MS, look, digester);
    return digester;
}

void digester_reconfigure(struct digester *digester, const struct intake_conf *conf)
{
    digester->conf = conf;
}

void digester_stop(struct digester *digester)
{
    digester->stopped = true;
    loop_timer_stop(&digester->timer);
}

bool digester_busy(const struct digester *digester)
{
    return digester->busy;
}

void digester_free(struct digester **digester)
{
    if (*digester != NULL) {
        ASSERT(!(*digester)->busy);
        loop_timer_stop(&(*digester)->timer);
        mem_free(*digester);
        *digester = NULL;
    }
}
