#include "gateway/intake.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"
#include "gateway/base/tls.h"
#include "gateway/digest_mail.h"
#include "gateway/intake_batches.h"
#include "gateway/intake_dedup.h"
#include "gateway/intake_header.h"
#include "queue/fields.h"

#include <ctype.h>

/* Invariants every path keeps:
 *  - on_result runs exactly once per submission, and never inside intake_submit();
 *  - ACCEPTED is said only from the queue's callback with status 0;
 *  - between the reservation of a key and the store the configuration may change: what was decided
 *    before is kept by copies, not by pointers into the snapshot;
 *  - a reserved key, and a reserved place in a window, are given back at every end but two: stored,
 *    and perhaps stored. */

#define TRACE_BYTES_MAX 2048 /* Received, Date, Message-ID, From added in front */
#define IDEMPOTENCY_KEY_MAX 255
/* How long a key belongs to a gateway that has died: longer than an enqueue may take to be known.
 */
#define KEY_HOLD_MS 60000
/* The same for a place in a window; meanwhile repeats wait, asking again, and then go through. */
#define WINDOW_HOLD_MS 15000
#define WINDOW_ASK_MS 25
#define WINDOW_ASKS_MAX 400
#define ABOUT_BYTES_MAX ((size_t)1 << 20)
#define SEND_AT_MAX_MS (366LL * 24 * 3600 * 1000)
#define SCRATCH_KEEP_BYTES (512 * 1024)

struct intake {
    struct loop *loop;
    struct queue *queue;
    const struct intake_conf *conf;
    struct events *events;
    const struct admission *admission; /* NULL: all lanes are open */
    size_t pending;
    struct buf scratch; /* the message as it will be stored; alive only inside intake_submit() */
};

/* One submission on its way, from intake_submit() to its result. */
struct pending {
    struct intake *intake;
    struct submission *submission;
    int64_t begun_us;
    struct loop_task task;
    struct intake_result result;
    struct intake_header facts;
    struct span lane;
    int64_t expires_ms;
    struct batch *batches;
    size_t batch_count;
    bool taken;    /* on_message_taken was said */
    bool reserved; /* the key is, or may be, ours to give back: nothing was stored under it */
    struct queue_idempotency idempotency; /* empty without a key */
    char owner[QUEUE_OWNER_MAX];
    struct dedup_window window; /* limit 0: in none */
    bool in_window;             /* a place in it is, or may be, ours to give back */
    uint64_t suppressed;        /* repeats that this message is the first to tell of */
    uint32_t window_asks;
    struct loop_timer window_timer;
    char window_key[DEDUP_KEY_MAX + 1];
    char key_hex[65];
    char fingerprint_hex[65];
    char id[MESSAGE_ID_MAX + 1];
    char made_message_id[MESSAGE_ID_MAX + 300];
    struct buf added; /* what stands before a large message, until it is stored */
};

const char *intake_verdict_name(enum intake_verdict verdict)
{
    switch (verdict) {
    case INTAKE_ACCEPTED:
        return "accepted";
    case INTAKE_REPLAYED:
        return "replayed";
    case INTAKE_DEDUPLICATED:
        return "deduplicated";
    case INTAKE_COLLECTED:
        return "collected";
    case INTAKE_CONFLICT:
        return "conflict";
    case INTAKE_RUNNING:
        return "running";
    case INTAKE_SENDER_DENIED:
        return "sender-denied";
    case INTAKE_NO_RECIPIENT:
        return "no-recipient";
    case INTAKE_BAD_MESSAGE:
        return "bad-message";
    case INTAKE_TOO_LARGE:
        return "too-large";
    case INTAKE_FULL:
        return "full";
    case INTAKE_UNAVAILABLE:
        return "unavailable";
    }
    UNREACHABLE();
}

struct intake *intake_new(struct loop *loop, struct queue *queue, const struct intake_conf *conf,
                          struct events *events)
{
    struct intake *intake = mem_zero(sizeof *intake);
    intake->loop = loop;
    intake->queue = queue;
    intake->conf = conf;
    intake->events = events;
    buf_init(&intake->scratch, conf->max_message_bytes + TRACE_BYTES_MAX);
    return intake;
}

void intake_free(struct intake **intake)
{
    if (*intake == NULL) {
        return;
    }
    ASSERT((*intake)->pending == 0);
    buf_release(&(*intake)->scratch);
    mem_free(*intake);
    *intake = NULL;
}

void intake_reconfigure(struct intake *intake, const struct intake_conf *conf)
{
    intake->conf = conf;
    intake->scratch.max = conf->max_message_bytes + TRACE_BYTES_MAX;
}

void intake_set_admission(struct intake *intake, const struct admission *admission)
{
    intake->admission = admission;
}

static struct span client_lane(const struct policy_client *client)
{
    return client->conf->lane != NULL ? span_of(client->conf->lane) : SPAN_LIT("normal");
}

enum intake_verdict intake_ready(struct intake *intake, const struct policy_client *client,
                                 const char **out_why)
{
    if (!queue_is_up(intake->queue)) {
        *out_why = "The queue is not available, try again later.";
        return INTAKE_UNAVAILABLE;
    }
    bool any = client == NULL || client->conf->may_choose_lane;
    enum admission_reason reason = any ? admission_of_all(intake->admission)
                                       : admission_of(intake->admission, client_lane(client));
    if (reason == ADMISSION_OPEN) {
        return INTAKE_ACCEPTED;
    }
    events_admission_refused(intake->events, any ? SPAN_LIT("any") : client_lane(client),
                             admission_reason_name(reason));
    *out_why = admission_reason_text(reason);
    return INTAKE_FULL;
}

size_t intake_pending(const struct intake *intake)
{
    return intake->pending;
}

/* Why this client may not send to the address; NULL when it may. */
static const char *recipient_objection(const struct intake_conf *conf,
                                       const struct policy_client *client, struct span address,
                                       bool smtputf8)
{
    if (!address_valid(address, smtputf8)) {
        return "The recipient address is not valid.";
    }
    bool internal = route_is_internal(conf->route, address);
    if (client->conf->recipients == POLICY_RECIPIENTS_INTERNAL && !internal) {
        return "This client may send to internal recipients only.";
    }
    if (client->conf->recipients == POLICY_RECIPIENTS_EXTERNAL && internal) {
        return "This client may send to external recipients only.";
    }
    return NULL;
}

const char *intake_recipient_check(const struct intake *intake, const struct policy_client *client,
                                   struct span address, bool smtputf8)
{
    const char *reason = recipient_objection(intake->conf, client, address, smtputf8);
    if (reason != NULL) {
        return reason;
    }
    struct route_request request = {
        .lane = client_lane(client),
        .client = span_of(client->conf->name),
    };
    return route_objection(intake->conf->route, &request, address);
}

static void let_message_go(struct pending *pending)
{
    if (!pending->taken) {
        pending->taken = true;
        if (pending->submission->on_message_taken != NULL) {
            pending->submission->on_message_taken(pending->submission);
        }
    }
}

/* Ends a submission: reports it, then tells its owner. Runs from the loop, never inside
 * intake_submit(). */
static void finish(void *ctx)
{
    struct pending *pending = ctx;
    struct intake *intake = pending->intake;
    struct submission *submission = pending->submission;
    const struct intake_result *result = &pending->result;
    let_message_go(pending);
    if (pending->reserved) {
        queue_key_give_back(intake->queue, &pending->idempotency);
    }
    if (pending->in_window) {
        dedup_give_back(intake->queue, &pending->window);
    }
    events_message(intake->events, &(struct event_message){
                                       .id = result->id,
                                       .protocol = submission->with,
                                       .client = submission->client->conf->name,
                                       .lane = pending->lane,
                                       .verdict = intake_verdict_name(result->verdict),
                                       .detail = result->detail,
                                       .reverse_path = submission->reverse_path,
                                       .bytes = submission->message.len,
                                       .recipients = result->accepted,
                                       .batches = result->batches,
                                       .rejected = result->rejected_count,
                                       .accept_us = clock_mono_us() - pending->begun_us,
                                   });
    ASSERT(intake->pending > 0);
    intake->pending--;
    submission->on_result(submission, result);
    buf_release(&pending->added);
    mem_free(pending);
}

static void refuse(struct pending *pending, enum intake_verdict verdict, const char *detail)
{
    pending->result.verdict = verdict;
    pending->result.detail = detail;
    let_message_go(pending);
    loop_defer(pending->intake->loop, &pending->task, LOOP_TASK_QUEUE, finish, pending);
}

/* Header writing. */

/* The EHLO argument as it may stand in a Received field: only characters of names and literals. */
static struct span safe_helo(struct span helo)
{
    for (size_t i = 0; i < helo.len; i++) {
        unsigned char byte = (unsigned char)helo.data[i];
        if (!isalnum(byte) && strchr(".-_:[]", byte) == NULL) {
            return SPAN_LIT("unknown");
        }
    }
    return helo.len > 0 && helo.len <= 255 ? helo : SPAN_LIT("unknown");
}

/* Trace and what a submission server completes (RFC 5321 4.4, RFC 6409 8.1-8.3). */
static int write_added_fields(struct pending *pending, struct buf *out)
{
    const struct submission *submission = pending->submission;
    const char *hostname = pending->intake->conf->hostname;
    char date[CLOCK_TEXT_MAX];
    clock_rfc5322(clock_wall_ms(), date);
    const char *tls = submission->tls_version[0] != '\0' ? submission->tls_version : NULL;
    int status = buf_printf(
        out, "Received: from %.*s ([%s])\r\n\tby %s (heave) with %s id %s%s%s%s;\r\n\t%s\r\n",
        SPAN_FMT(safe_helo(submission->helo)), submission->peer_address, hostname, submission->with,
        pending->id, tls != NULL ? "\r\n\t(" : "", tls != NULL ? tls : "", tls != NULL ? ")" : "",
        date);
    if (status == ERR_OK && pending->suppressed > 0) {
        status = buf_printf(out, "X-Heave-Suppressed: %llu\r\n",
                            (unsigned long long)pending->suppressed);
    }
    if (status == ERR_OK && !pending->facts.has_from && submission->reverse_path.len > 0) {
        status = buf_printf(out, "From: <%.*s>\r\n", SPAN_FMT(submission->reverse_path));
    }
    if (status == ERR_OK && !pending->facts.has_date) {
        status = buf_printf(out, "Date: %s\r\n", date);
    }
    if (status == ERR_OK && pending->facts.message_id.len == 0) {
        (void)snprintf(pending->made_message_id, sizeof pending->made_message_id, "<%s@%.255s>",
                       pending->id, hostname);
        pending->facts.message_id = span_of(pending->made_message_id);
        status = buf_printf(out, "Message-ID: %s\r\n", pending->made_message_id);
    }
    return status;
}

/* The message is `out` and what is left in `*rest`. Its larger part stays where it is: only a
 * header that must change is copied. */
static int write_message(struct pending *pending, struct span header, struct span *rest,
                         struct buf *out)
{
    static const char *const private_names[] = {"Bcc", "Resent-Bcc", "X-Heave-*"};
    int status = write_added_fields(pending, out);
    if (status != ERR_OK) {
        return status;
    }
    if (pending->facts.has_private) {
        status = fields_copy_without(header, private_names, 3, out);
    } else if (rest->len == 0) {
        status = buf_append(out, header);
    } else {
        *rest = pending->submission->message;
    }
    if (status == ERR_OK && rest->len == 0) {
        *rest = SPAN_LIT("\r\n"); /* a header without the empty line that ends it */
    }
    return status;
}

/* Decisions. */

static bool lane_known(const struct intake_conf *conf, struct span lane, size_t *out_index)
{
    for (size_t i = 0; i < conf->lane_count; i++) {
        if (span_eq(span_of(conf->lane_names[i]), lane)) {
            *out_index = i;
            return true;
        }
    }
    return false;
}

/* The lane: asked for by the API, else by the header where the client may, else the client's. */
static const char *decide_lane(struct pending *pending, int64_t now_ms)
{
    struct submission *submission = pending->submission;
    const struct intake_conf *conf = pending->intake->conf;
    bool may_choose = submission->client->conf->may_choose_lane;
    struct span lane = client_lane(submission->client);
    if (submission->lane.len > 0) {
        if (!may_choose && !span_eq(submission->lane, lane)) {
            return "This client may not choose its lane.";
        }
        lane = submission->lane;
    } else if (may_choose && pending->facts.lane.len > 0) {
        lane = pending->facts.lane;
    }
    size_t index = 0;
    if (!lane_known(conf, lane, &index)) {
        return "There is no lane of that name.";
    }
    pending->lane = span_of(conf->lane_names[index]);
    int64_t expires_in = submission->expires_in_ms > 0 ? submission->expires_in_ms
                                                       : conf->lane_expires_ms[index];
    int64_t from_ms = submission->send_at_ms > now_ms ? submission->send_at_ms : now_ms;
    pending->expires_ms = from_ms + expires_in;
    return NULL;
}

static const char *decide_schedule(struct pending *pending)
{
    struct submission *submission = pending->submission;
    if (submission->send_at_ms == 0 && pending->facts.send_at.len > 0) {
        if (clock_parse_rfc3339(pending->facts.send_at, &submission->send_at_ms) != ERR_OK) {
            return "X-Heave-Send-At is not an RFC 3339 time.";
        }
        if (submission->send_at_ms > clock_wall_ms() + SEND_AT_MAX_MS) {
            return "X-Heave-Send-At is more than a year ahead.";
        }
    }
    if (submission->idempotency_key.len > IDEMPOTENCY_KEY_MAX ||
        pending->facts.idempotency_key.len > IDEMPOTENCY_KEY_MAX) {
        return "The idempotency key is longer than 255 bytes.";
    }
    if (pending->facts.dedup_key.len > INTAKE_DEDUP_KEY_MAX) {
        return "X-Heave-Dedup-Key is longer than 255 bytes.";
    }
    return NULL;
}

static bool sender_allowed(const struct pending *pending)
{
    const struct policy_client *client = pending->submission->client;
    return policy_sender_allowed(client, pending->submission->reverse_path) &&
           !pending->facts.foreign_from;
}

/* Checks everything that can be said without recipients. Fills the refusal and returns false when
 * it is one. */
static bool check_message(struct pending *pending)
{
    const struct intake_conf *conf = pending->intake->conf;
    if (pending->submission->message.len > conf->max_message_bytes) {
        refuse(pending, INTAKE_TOO_LARGE, "The message is larger than this gateway accepts.");
        return false;
    }
    if (pending->facts.received > conf->max_received) {
        refuse(pending, INTAKE_BAD_MESSAGE, "The message has passed too many hops: a mail loop.");
        return false;
    }
    if (!sender_allowed(pending)) {
        refuse(pending, INTAKE_SENDER_DENIED, "This client may not send as that sender.");
        return false;
    }
    const char *reason = decide_schedule(pending);
    reason = reason != NULL ? reason : decide_lane(pending, queue_wall_ms(pending->intake->queue));
    if (reason != NULL) {
        refuse(pending, INTAKE_BAD_MESSAGE, reason);
        return false;
    }
    enum admission_reason closed = admission_of(pending->intake->admission, pending->lane);
    if (closed != ADMISSION_OPEN) {
        events_admission_refused(pending->intake->events, pending->lane,
                                 admission_reason_name(closed));
        refuse(pending, INTAKE_FULL, admission_reason_text(closed));
        return false;
    }
    pending->lane = arena_dup(&pending->submission->arena, pending->lane);
    if (pending->lane.data == NULL) {
        refuse(pending, INTAKE_UNAVAILABLE, "Memory is short; try again later.");
        return false;
    }
    return true;
}

/* Recipients the client may not reach go to `rejected`, the others are packed to the front of a new
 * array. */
static int sift_recipients(struct pending *pending, struct span **out_kept, size_t *out_count,
                           struct intake_rejected **out_rejected)
{
    struct submission *submission = pending->submission;
    size_t room = submission->recipient_count + 1;
    struct span *kept = arena_alloc(&submission->arena, room * sizeof *kept);
    struct intake_rejected *rejected = arena_alloc(&submission->arena, room * sizeof *rejected);
    if (kept == NULL || rejected == NULL) {
        return ERR_NOMEM;
    }
    size_t count = 0;
    for (size_t i = 0; i < submission->recipient_count; i++) {
        struct span address = submission->recipients[i];
        const char *reason = recipient_objection(pending->intake->conf, submission->client, address,
                                                 submission->smtputf8);
        if (reason == NULL) {
            kept[count++] = address;
        } else {
            rejected[pending->result.rejected_count++] = (struct intake_rejected){
                .address = address, .reason = reason};
        }
    }
    *out_kept = kept;
    *out_count = count;
    *out_rejected = rejected;
    return ERR_OK;
}

static int plan_recipients(struct pending *pending, struct route_plan *out_plan)
{
    struct submission *submission = pending->submission;
    struct span *kept = NULL;
    size_t count = 0;
    struct intake_rejected *rejected = NULL;
    int status = sift_recipients(pending, &kept, &count, &rejected);
    if (status != ERR_OK) {
        return status;
    }
    struct route_request request = {
        .lane = pending->lane,
        .client = span_of(submission->client->conf->name),
        .sender = submission->reverse_path,
        .message_bytes = submission->message.len,
        .recipients = kept,
        .recipient_count = count,
    };
    status = route_plan(pending->intake->conf->route, &request, &submission->arena, out_plan);
    if (status != ERR_OK) {
        return status;
    }
    for (size_t i = 0; i < out_plan->refused_count; i++) {
        rejected[pending->result.rejected_count++] = (struct intake_rejected){
            .address = out_plan->refused[i].address, .reason = out_plan->refused[i].reason};
    }
    pending->result.rejected = rejected;
    pending->result.accepted = out_plan->recipient_count;
    pending->result.batches = out_plan->batch_count;
    return ERR_OK;
}

static const char key_conflict[] = "The idempotency key was used before with other content.";
static const char key_running[] =
    "A message with this idempotency key is being taken right now; try again in a moment.";

static void on_enqueued(void *ctx, int status, const struct queue_enqueued *enqueued)
{
    struct pending *pending = ctx;
    struct intake_result *result = &pending->result;
    /* Perhaps stored: who comes again must find the key reserved, or the answer. */
    bool in_doubt = status == ERR_TIMEOUT || status == ERR_CLOSED;
    pending->reserved = pending->reserved && status != ERR_OK && !in_doubt;
    if (pending->in_window && status == ERR_OK && !enqueued->replayed) {
        dedup_commit(pending->intake->queue, &pending->window, span_of(pending->id),
                     pending->suppressed);
        pending->in_window = false;
    }
    pending->in_window = pending->in_window && !in_doubt;
    if (status == ERR_OK && enqueued->replayed) {
        result->verdict = INTAKE_REPLAYED;
        result->id = enqueued->id;
        result->answer = enqueued->answer;
    } else if (status == ERR_OK) {
        result->verdict = INTAKE_ACCEPTED;
        result->id = span_of(pending->id);
    } else if (status == ERR_FULL) {
        /* The levels of a second ago said there was room. */
        events_admission_refused(pending->intake->events, pending->lane, "limit");
        result->verdict = INTAKE_FULL;
        result->detail = "The queue is full; try again later.";
    } else if (status == ERR_CONFLICT) {
        result->verdict = INTAKE_CONFLICT;
        result->detail = key_conflict;
    } else if (status == ERR_BUSY) {
        result->verdict = INTAKE_RUNNING;
        result->detail = key_running;
    } else {
        result->verdict = INTAKE_UNAVAILABLE;
        result->detail = "The queue cannot be reached; try again later.";
    }
    finish(pending);
}

static struct span content_fingerprint(const struct submission *submission, char *room)
{
    unsigned char digest[32];
    tls_sha256(submission->message, digest);
    codec_hex(digest, sizeof digest, room);
    return span_make(room, sizeof digest * 2);
}

static void digest_more(unsigned char digest[32], struct span more)
{
    unsigned char both[64];
    memcpy(both, digest, 32);
    tls_sha256(more, both + 32);
    tls_sha256(span_make((const char *)both, sizeof both), digest);
}

/* A key in the header belongs to the message and its envelope: a relay that hands on one message in
 * several transactions, some of the recipients in each, must not lose all but the first. */
static struct span envelope_key(const struct submission *submission, struct span key, char *room)
{
    unsigned char digest[32];
    tls_sha256(key, digest);
    digest_more(digest, submission->reverse_path);
    for (size_t i = 0; i < submission->recipient_count; i++) {
        digest_more(digest, submission->recipients[i]);
    }
    codec_hex(digest, sizeof digest, room);
    return span_make(room, sizeof digest * 2);
}

/* Scope, key and fingerprint; the answer is made when the id is known. */
static void decide_idempotency(struct pending *pending)
{
    struct submission *submission = pending->submission;
    struct span key = submission->idempotency_key;
    if (key.len == 0 && pending->facts.idempotency_key.len > 0) {
        key = envelope_key(submission, pending->facts.idempotency_key, pending->key_hex);
    }
    if (key.len == 0) {
        return;
    }
    bool given = submission->idempotency_fingerprint.len > 0;
    pending->idempotency = (struct queue_idempotency){
        .scope = span_of(submission->client->conf->name),
        .key = key,
        .fingerprint = given ? submission->idempotency_fingerprint
                             : content_fingerprint(submission, pending->fingerprint_hex),
    };
}

static uint32_t message_flags(const struct submission *submission, struct span added,
                              struct span rest)
{
    uint32_t flags = codec_has_8bit(added) || codec_has_8bit(rest) ? MESSAGE_8BIT : 0;
    flags |= submission->smtputf8 ? MESSAGE_SMTPUTF8 : 0;
    const struct policy_client_conf *client = submission->client->conf;
    bool by_host = client->user == NULL && client->api_key_hash == NULL;
    return by_host ? flags | MESSAGE_BY_HOST : flags;
}

/* Who handed it in, for searching: "192.0.2.1 name-it-gave". */
static struct span source_of(struct submission *submission)
{
    struct span address = span_of(submission->peer_address);
    struct span helo = submission->helo.len > 0 ? safe_helo(submission->helo) : (struct span){0};
    char *text = arena_alloc(&submission->arena, address.len + helo.len + 2);
    if (text == NULL) {
        return (struct span){0};
    }
    int len = snprintf(text, address.len + helo.len + 2, "%.*s%s%.*s", SPAN_FMT(address),
                       helo.len > 0 ? " " : "", SPAN_FMT(helo));
    return span_make(text, (size_t)len);
}

static int enqueue(struct pending *pending, struct span added, struct span rest)
{
    struct submission *submission = pending->submission;
    struct message message = {
        .id = span_of(pending->id),
        .client = span_of(submission->client->conf->name),
        .lane = pending->lane,
        .reverse_path = submission->reverse_path,
        .header_from = pending->facts.from,
        .message_id = pending->facts.message_id,
        .subject = pending->facts.subject,
        .source = source_of(submission),
        .tags = pending->facts.tags,
        .accepted_ms = queue_wall_ms(pending->intake->queue),
        .expires_ms = pending->expires_ms,
        .flags = message_flags(submission, added, rest),
        .prefix = added,
        .body = rest,
        .batches = pending->batches,
        .batch_count = pending->batch_count,
    };
    pending->result.id = message.id;
    if (pending->idempotency.key.len > 0 && submission->make_answer != NULL) {
        pending->idempotency.answer = submission->make_answer(submission, &pending->result);
    }
    int64_t send_at = submission->send_at_ms > message.accepted_ms ? submission->send_at_ms : 0;
    return queue_enqueue(pending->intake->queue, &message, send_at, &pending->idempotency,
                         on_enqueued, pending);
}

/* A large message is stored in pieces, while other submissions need the scratch room. */
static bool lend_message(struct pending *pending, struct span rest)
{
    struct buf *scratch = &pending->intake->scratch;
    if (buf_len(scratch) + rest.len <= QUEUE_BODY_COPIED) {
        return false;
    }
    pending->added = *scratch;
    buf_init(scratch, pending->added.max);
    return true;
}

static const char queue_full[] = "The queue's disk is full; try again later.";

/* Completes the header, and hands everything to the queue, which copies it before it returns, or
 * reads a large message until its callback. */
static void store(struct pending *pending)
{
    struct intake *intake = pending->intake;
    struct span header;
    struct span rest;
    fields_split(pending->submission->message, &header, &rest);
    bool lent = false;
    FAILPOINT("intake-before-enqueue");
    queue_message_id(intake->queue, &pending->idempotency, pending->id);
    buf_reset(&intake->scratch);
    /* By a wrong clock it could be born expired. */
    int status = queue_clock_known(intake->queue)
                     ? write_message(pending, header, &rest, &intake->scratch)
                     : ERR_UNAVAILABLE;
    if (status == ERR_OK) {
        lent = lend_message(pending, rest);
        status = enqueue(pending, buf_span(lent ? &pending->added : &intake->scratch), rest);
    }
    if (intake->scratch.cap > SCRATCH_KEEP_BYTES) {
        buf_release(&intake->scratch);
    }
    if (status == ERR_FULL) {
        refuse(pending, INTAKE_FULL, queue_full);
    } else if (status == ERR_LIMIT || status == ERR_NOMEM) {
        refuse(pending, INTAKE_FULL, "Too much mail is being stored at once; try again later.");
    } else if (status != ERR_OK) {
        refuse(pending, INTAKE_UNAVAILABLE, "The queue cannot be reached; try again later.");
        return;
    }
    if (!lent) {
        let_message_go(pending);
    }
}

static void ask_window(void *ctx);

/* Accepted and not queued by itself; its key, if it has one, is answered so from now on. */
static void finish_unqueued(struct pending *pending, enum intake_verdict verdict, struct span id)
{
    struct intake_result *result = &pending->result;
    result->verdict = verdict;
    result->id = id;
    result->batches = 0;
    if (pending->reserved) {
        if (pending->submission->make_answer != NULL) {
            pending->idempotency.answer = pending->submission->make_answer(pending->submission,
                                                                           result);
        }
        queue_key_finish(pending->intake->queue, &pending->idempotency, result->id);
        pending->reserved = false;
    }
    finish(pending);
}

static void on_window(void *ctx, int status, const struct dedup_found *found)
{
    struct pending *pending = ctx;
    if (status != ERR_OK) {
        pending->in_window = true; /* perhaps */
        pending->result.verdict = INTAKE_UNAVAILABLE;
        pending->result.detail = "The queue cannot be reached; try again later.";
        finish(pending);
        return;
    }
    switch (found->state) {
    case DEDUP_PASS:
        pending->in_window = true;
        pending->suppressed = found->suppressed;
        store(pending);
        return;
    case DEDUP_REPEAT:
        finish_unqueued(pending, INTAKE_DEDUPLICATED, found->id);
        return;
    case DEDUP_BUSY:
        if (pending->window_asks++ < WINDOW_ASKS_MAX) {
            loop_timer_start(pending->intake->loop, &pending->window_timer, WINDOW_ASK_MS,
                             ask_window, pending);
        } else {
            store(pending); /* one mail too many rather than one too few */
        }
        return;
    }
}

static void ask_window(void *ctx)
{
    struct pending *pending = ctx;
    if (dedup_begin(pending->intake->queue, &pending->window, WINDOW_HOLD_MS, on_window, pending) !=
        0) {
        refuse(pending, INTAKE_UNAVAILABLE, "The queue cannot be reached; try again later.");
    }
}

static void on_collected(void *ctx, int status, struct span id, size_t count)
{
    (void)count;
    struct pending *pending = ctx;
    if (status == ERR_OK) {
        finish_unqueued(pending, INTAKE_COLLECTED, id);
        return;
    }
    bool in_doubt = status == ERR_TIMEOUT || status == ERR_CLOSED;
    pending->reserved = pending->reserved && !in_doubt;
    pending->result.verdict = status == ERR_FULL ? INTAKE_FULL : INTAKE_UNAVAILABLE;
    pending->result.detail = "The queue cannot take it now; try again later.";
    finish(pending);
}

/* Hands the message, with its completed header, to the collection of its window; one that is too
 * large for it is stored by itself. */
static void collect(struct pending *pending)
{
    struct intake *intake = pending->intake;
    const struct submission *submission = pending->submission;
    char key[QUEUE_OWNER_MAX + 8];
    (void)snprintf(key, sizeof key, "digest:%s", pending->owner);
    struct queue_idempotency once = {.scope = pending->window.scope, .key = span_of(key)};
    queue_message_id(intake->queue, &once, pending->id);
    struct digest_about about = {
        .client = once.scope,
        .lane = pending->lane,
        .key = once.key,
        .reverse_path = submission->reverse_path,
        .smtputf8 = submission->smtputf8,
        .recipients = submission->recipients,
        .recipient_count = submission->recipient_count,
    };
    struct buf said;
    struct span header;
    struct span rest;
    buf_init(&said, ABOUT_BYTES_MAX);
    fields_split(submission->message, &header, &rest);
    buf_reset(&intake->scratch);
    int status = write_message(pending, header, &rest, &intake->scratch);
    status = status == ERR_OK ? digest_about_write(&about, &said) : status;
    if (status == ERR_OK) {
        struct digest_item item = {
            .scope = once.scope,
            .key = pending->window.key,
            .window_ms = pending->window.window_ms,
            .id = span_of(pending->id),
            .about = buf_span(&said),
            .first = buf_span(&intake->scratch),
            .second = rest,
        };
        status = digest_add(intake->queue, &item, on_collected, pending);
    }
    buf_release(&said);
    if (status == ERR_LIMIT) {
        if (pending->facts.message_id.data == pending->made_message_id) {
            pending->facts.message_id = (struct span){0}; /* for the header that is written anew */
        }
        store(pending);
    } else if (status == ERR_FULL) {
        refuse(pending, INTAKE_FULL, queue_full);
    } else if (status != ERR_OK) {
        refuse(pending, INTAKE_UNAVAILABLE, "The queue cannot be reached; try again later.");
    } else {
        let_message_go(pending);
    }
}

static void dedup_or_store(struct pending *pending)
{
    const struct policy_client_conf *client = pending->submission->client->conf;
    if (pending->window.limit == 0) {
        store(pending);
    } else if (client->dedup.mode != POLICY_DEDUP_DIGEST) {
        ask_window(pending);
    } else if (pending->submission->send_at_ms > 0 ||
               pending->submission->message.len > DIGEST_MESSAGE_MAX) {
        store(pending); /* it has a time, or is a size, of its own */
    } else {
        collect(pending);
    }
}

static void on_key(void *ctx, int status, const struct queue_key_found *found)
{
    struct pending *pending = ctx;
    struct intake_result *result = &pending->result;
    if (status != ERR_OK) {
        pending->reserved = true; /* perhaps */
        result->verdict = INTAKE_UNAVAILABLE;
        result->detail = "The queue cannot be reached; try again later.";
        finish(pending);
        return;
    }
    switch (found->state) {
    case QUEUE_KEY_FRESH:
        pending->reserved = true;
        dedup_or_store(pending);
        return;
    case QUEUE_KEY_REPLAY:
        result->verdict = INTAKE_REPLAYED;
        result->id = found->id;
        result->answer = found->answer;
        break;
    case QUEUE_KEY_CONFLICT:
        result->verdict = INTAKE_CONFLICT;
        result->detail = key_conflict;
        break;
    case QUEUE_KEY_RUNNING:
        result->verdict = INTAKE_RUNNING;
        result->detail = key_running;
        break;
    }
    finish(pending);
}

static void decide_window(struct pending *pending)
{
    const struct submission *submission = pending->submission;
    struct intake_dedup message = {
        .sender = submission->reverse_path,
        .recipients = submission->recipients,
        .recipient_count = submission->recipient_count,
        .given_key = pending->facts.dedup_key,
        .subject = pending->facts.whole_subject,
    };
    (void)intake_dedup_window(submission->client->conf, &message, pending->window_key,
                              &pending->window); /* in none: its limit stays 0 */
}

/* A message with a key is stored when the key is reserved, others at once; in between it may turn
 * out a repeat. */
static void reserve_and_store(struct pending *pending)
{
    struct intake *intake = pending->intake;
    decide_idempotency(pending);
    decide_window(pending);
    bool keyed = pending->idempotency.key.len > 0;
    if (keyed || pending->window.limit > 0) {
        queue_key_owner(intake->queue, pending->owner);
        pending->idempotency.owner = span_of(pending->owner);
        pending->window.owner = span_of(pending->owner);
    }
    if (!keyed) {
        dedup_or_store(pending);
        return;
    }
    if (queue_key_begin(intake->queue, &pending->idempotency, KEY_HOLD_MS, on_key, pending) != 0) {
        refuse(pending, INTAKE_UNAVAILABLE, "The queue cannot be reached; try again later.");
    }
}

static bool acceptable(struct pending *pending, const struct route_plan *plan)
{
    const struct intake_result *result = &pending->result;
    if (plan->batch_count == 0) {
        const char *reason = result->rejected_count > 0 ? result->rejected[0].reason
                                                        : "The message has no recipient.";
        refuse(pending, INTAKE_NO_RECIPIENT, reason);
        return false;
    }
    if (result->rejected_count > 0 && !pending->submission->partial_ok) {
        refuse(pending, INTAKE_NO_RECIPIENT, result->rejected[0].reason);
        return false;
    }
    return true;
}

void intake_submit(struct intake *intake, struct submission *submission)
{
    struct pending *pending = mem_zero(sizeof *pending);
    pending->intake = intake;
    pending->submission = submission;
    pending->begun_us = clock_mono_us();
    submission->intake_private = pending;
    intake->pending++;
    struct span header;
    struct span rest;
    fields_split(submission->message, &header, &rest);
    intake_header_read(header, submission->client, &submission->arena, &pending->facts);
    if (!check_message(pending)) {
        return;
    }
    struct route_plan plan;
    if (plan_recipients(pending, &plan) != ERR_OK) {
        refuse(pending, INTAKE_UNAVAILABLE, "Memory is short; try again later.");
        return;
    }
    if (!acceptable(pending, &plan)) {
        return;
    }
    pending->batches = intake_batches(intake->conf->route, &plan, pending->lane,
                                      &submission->arena);
    pending->batch_count = plan.batch_count;
    if (pending->batches == NULL) {
        refuse(pending, INTAKE_UNAVAILABLE, "Memory is short; try again later.");
        return;
    }
    reserve_and_store(pending);
}
