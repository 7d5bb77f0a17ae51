#include "gateway/api/messages.h"

#include "gateway/api/message_json.h"
#include "gateway/api/problem.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"
#include "gateway/base/tls.h"
#include "gateway/mime.h"
#include "queue/fields.h"

#define IDEMPOTENCY_KEY_MAX 255
#define ARENA_EXTRA_BYTES (16u * 1024u * 1024u)
#define FINGERPRINT_HEX_LEN 64
/* Long lists of rejected recipients are not stored for replay. */
#define ANSWER_STORED_MAX_BYTES (256u * 1024u)

/* Answers. */

static json_t *accepted_body(const struct intake_result *result)
{
    json_t *body = json_object();
    (void)json_object_set_new(body, "id", api_text(result->id));
    (void)json_object_set_new(body, "accepted", json_integer((json_int_t)result->accepted));
    json_t *rejected = json_array();
    for (size_t i = 0; i < result->rejected_count; i++) {
        json_t *item = json_object();
        (void)json_object_set_new(item, "address", api_text(result->rejected[i].address));
        (void)json_object_set_new(item, "reason", json_string(result->rejected[i].reason));
        (void)json_array_append_new(rejected, item);
    }
    (void)json_object_set_new(body, "rejected", rejected);
    (void)json_object_set_new(body, "batches", json_integer((json_int_t)result->batches));
    if (result->verdict == INTAKE_DEDUPLICATED) {
        (void)json_object_set_new(body, "deduplicated", json_true());
    }
    if (result->verdict == INTAKE_COLLECTED) {
        (void)json_object_set_new(body, "collected", json_true());
    }
    return body;
}

/* What is stored with the idempotency key: the body of the 202. */
static struct span messages_make_answer(struct submission *submission,
                                        const struct intake_result *result)
{
    json_t *body = accepted_body(result);
    struct buf text;
    buf_init(&text, ANSWER_STORED_MAX_BYTES);
    int rc = api_json_write(body, &text);
    json_decref(body);
    struct span kept = {.data = NULL, .len = 0};
    if (rc == 0) {
        kept = arena_dup(&submission->arena, buf_span(&text));
    }
    buf_release(&text);
    /* Without a stored answer a replay is answered with the id alone. */
    return kept.data != NULL ? kept : SPAN_LIT("");
}

static void answer_accepted(struct api_call *call, const struct intake_result *result,
                            bool replayed)
{
    char location[MESSAGE_ID_MAX + 32];
    (void)snprintf(location, sizeof(location), "/v1/messages/%.*s", (int)result->id.len,
                   result->id.data);
    const struct http_header headers[] = {
        {.name = SPAN_LIT("location"), .value = span_of(location)},
        {.name = SPAN_LIT("idempotency-replayed"), .value = SPAN_LIT("true")},
    };
    json_t *body = NULL;
    if (replayed) {
        body = json_loadb(result->answer.data != NULL ? result->answer.data : "",
                          result->answer.len, 0, NULL);
    }
    if (body == NULL) {
        body = accepted_body(result);
    }
    api_call_json(call, 202, headers, replayed ? 2 : 1, body);
}

struct verdict_row {
    enum intake_verdict verdict;
    int status;
    const char *name;
    int retry_after_s;
};
static const struct verdict_row verdict_rows[] = {
    {INTAKE_CONFLICT, 422, "idempotency-conflict", 0},
    {INTAKE_RUNNING, 409, "idempotency-in-flight", 1},
    {INTAKE_SENDER_DENIED, 403, "sender-denied", 0},
    {INTAKE_NO_RECIPIENT, 422, "no-recipient", 0},
    {INTAKE_BAD_MESSAGE, 422, "bad-message", 0},
    {INTAKE_TOO_LARGE, 413, "too-large", 0},
    {INTAKE_FULL, 503, "queue-full", API_FULL_RETRY_S},
    {INTAKE_UNAVAILABLE, 503, "unavailable", 5},
};

/* Complaints about recipients, so that a refusal for all of them says each one's reason. */
static json_t *rejected_errors(const struct intake_result *result)
{
    if (result->rejected_count == 0) {
        return NULL;
    }
    json_t *errors = json_array();
    for (size_t i = 0; i < result->rejected_count; i++) {
        problem_add(errors, "", "%.*s: %s", (int)result->rejected[i].address.len,
                    result->rejected[i].address.data, result->rejected[i].reason);
    }
    return errors;
}

static void answer_refused(struct api_call *call, const struct intake_result *result)
{
    for (size_t i = 0; i < sizeof(verdict_rows) / sizeof(verdict_rows[0]); i++) {
        const struct verdict_row *row = &verdict_rows[i];
        if (row->verdict == result->verdict) {
            bool about_recipients = row->verdict == INTAKE_NO_RECIPIENT;
            api_problem(call, &(struct problem){
                                  .status = row->status,
                                  .name = row->name,
                                  .detail = result->detail != NULL ? result->detail : "",
                                  .errors = about_recipients ? rejected_errors(result) : NULL,
                                  .retry_after_s = row->retry_after_s,
                              });
            return;
        }
    }
    UNREACHABLE();
}

static void messages_on_result(struct submission *submission, const struct intake_result *result)
{
    struct api_call *call = submission->ctx;
    FAILPOINT("api-before-reply");
    if (!api_call_resume(call)) {
        return; /* the peer went; the message is accepted or not all the same */
    }
    if (result->verdict == INTAKE_ACCEPTED || result->verdict == INTAKE_REPLAYED ||
        result->verdict == INTAKE_DEDUPLICATED || result->verdict == INTAKE_COLLECTED) {
        answer_accepted(call, result, result->verdict == INTAKE_REPLAYED);
        return;
    }
    answer_refused(call, result);
}

/* Idempotency. */

/* SHA-256 of method, target, content type and body, each closed by a line feed, as hex in the
 * submission's arena. */
static int fingerprint(struct api_call *call, struct span body)
{
    struct http_request *request = call->request;
    struct submission *submission = &call->submission;
    unsigned char inner[32];
    unsigned char digest[32];
    char hex[FINGERPRINT_HEX_LEN + 1];
    tls_sha256(body, inner);
    codec_hex(inner, sizeof(inner), hex);
    struct buf text;
    buf_init(&text, 2 * HTTP_HEAD_BYTES_MAX);
    struct span type = http_request_header(request, "content-type");
    int rc = buf_printf(&text, "%.*s\n%.*s\n%.*s\n%s\n", SPAN_FMT(request->method),
                        SPAN_FMT(request->target), (int)type.len,
                        type.data != NULL ? type.data : "", hex);
    if (rc == 0) {
        tls_sha256(buf_span(&text), digest);
        codec_hex(digest, sizeof(digest), hex);
        submission->idempotency_fingerprint = arena_dup(&submission->arena, span_of(hex));
        rc = submission->idempotency_fingerprint.data != NULL ? 0 : ERR_NOMEM;
    }
    buf_release(&text);
    return rc;
}

/* Reads Idempotency-Key. False: the call was answered. */
static bool take_idempotency(struct api_call *call, struct span body)
{
    struct span key = http_request_header(call->request, "idempotency-key");
    if (key.data == NULL) {
        return true;
    }
    if (key.len == 0 || key.len > IDEMPOTENCY_KEY_MAX) {
        api_refuse(call, 422, "An Idempotency-Key has 1 to 255 bytes.");
        return false;
    }
    call->submission.idempotency_key = arena_dup(&call->submission.arena, key);
    if (call->submission.idempotency_key.data == NULL || fingerprint(call, body) != 0) {
        api_unavailable(call, "There is no memory for this request now.");
        return false;
    }
    return true;
}

/* Submitting. */

static void submit(struct api_call *call)
{
    struct submission *submission = &call->submission;
    struct http_request *request = call->request;
    submission->client = call->client;
    submission->policy = call->policy;
    submission->partial_ok = true;
    submission->make_answer = messages_make_answer;
    submission->with = request->is_tls ? "HTTPS" : "HTTP";
    /* The request may go before intake has finished. */
    struct span peer = arena_dup(&submission->arena, span_of(request->peer_address));
    struct span tls = arena_dup(&submission->arena, span_of(request->tls_version));
    if (peer.data == NULL || tls.data == NULL) {
        api_unavailable(call, "There is no memory for this request now.");
        return;
    }
    submission->peer_address = peer.data;
    submission->tls_version = tls.data;
    submission->helo = SPAN_LIT("");
    submission->on_result = messages_on_result;
    submission->ctx = call;
    api_call_wait(call);
    intake_submit(call->api->conf.intake, submission);
}

/* JSON. */

static json_t *parse_json(struct api_call *call, struct span body)
{
    json_error_t error;
    json_t *root = json_loadb(body.data != NULL ? body.data : "", body.len, JSON_REJECT_DUPLICATES,
                              &error);
    if (root != NULL) {
        return root;
    }
    char detail[300];
    (void)snprintf(detail, sizeof(detail), "The body is not JSON: line %d, column %d: %s.",
                   error.line, error.column, error.text);
    api_problem(call, &(struct problem){.status = 400, .name = "malformed-json", .detail = detail});
    return NULL;
}

/* Copies the envelope to the submission's arena: the JSON and its arena go after composing. */
static int take_envelope(struct api_call *call, const struct message_json *json)
{
    struct submission *submission = &call->submission;
    struct arena *arena = &submission->arena;
    submission->recipients = arena_alloc(arena, (json->recipient_count + 1) * sizeof(struct span));
    submission->reverse_path = arena_dup(arena, json->from);
    submission->lane = json->lane.len > 0 ? arena_dup(arena, json->lane) : SPAN_LIT("");
    if (submission->recipients == NULL || submission->reverse_path.data == NULL ||
        submission->lane.data == NULL) {
        return ERR_NOMEM;
    }
    for (size_t i = 0; i < json->recipient_count; i++) {
        submission->recipients[i] = arena_dup(arena, json->recipients[i]);
        if (submission->recipients[i].data == NULL) {
            return ERR_NOMEM;
        }
    }
    submission->recipient_count = json->recipient_count;
    submission->smtputf8 = json->smtputf8;
    submission->send_at_ms = json->send_at_ms;
    submission->expires_in_ms = json->expires_in_ms;
    return 0;
}

/* Composes into call->message. Returns 0, or answers and returns an error. */
static int compose(struct api_call *call, const struct message_json *json)
{
    struct err err;
    const struct mime_options options = {.boundary = SPAN_LIT("")};
    buf_init(&call->message, call->api->conf.max_message_bytes);
    int rc = mime_compose(&json->view, &options, &call->message, &err);
    if (rc == 0) {
        rc = take_envelope(call, json);
    }
    if (rc == ERR_LIMIT) {
        api_problem(call,
                    &(struct problem){
                        .status = 413,
                        .name = "too-large",
                        .detail = "The finished message is larger than this gateway accepts."});
    } else if (rc == ERR_INVAL) {
        api_problem(call,
                    &(struct problem){.status = 422, .name = "bad-message", .detail = err.text});
    } else if (rc != 0) {
        api_unavailable(call, "There is no memory for this request now.");
    }
    return rc;
}

static void post_parsed(struct api_call *call, const json_t *root)
{
    struct arena arena;
    arena_init(&arena, 2 * call->api->conf.max_message_bytes + ARENA_EXTRA_BYTES);
    struct message_json json;
    json_t *errors = json_array();
    int rc = message_json_read(root, call->api->conf.max_recipients, &arena, &json, errors);
    bool composed = false;
    if (rc == ERR_INVAL) {
        api_problem(call,
                    &(struct problem){.status = 422,
                                      .name = "invalid-message",
                                      .detail = "The message has members that cannot be used.",
                                      .errors = json_incref(errors)});
    } else if (rc != 0) {
        api_unavailable(call, "There is no memory for this request now.");
    } else {
        composed = compose(call, &json) == 0;
    }
    json_decref(errors);
    arena_release(&arena);
    if (composed) {
        call->submission.message = buf_span(&call->message);
        submit(call);
    }
}

static void post_json(struct api_call *call, struct span body)
{
    if (!message_json_affordable(body, call->api->conf.max_recipients)) {
        api_problem(call, &(struct problem){
                              .status = 422,
                              .name = "invalid-message",
                              .detail = "The body holds more values than a message can have."});
        return;
    }
    json_t *root = parse_json(call, body);
    if (root == NULL) {
        return;
    }
    buf_release(&call->body); /* parsed: a large message is not held once more */
    post_parsed(call, root);
    json_decref(root);
}

/* RFC 5322 as it is. */

/* Whether every LF and CR is part of a CR LF. */
static bool line_ends_good(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] == '\r' && (i + 1 == text.len || text.data[i + 1] != '\n')) {
            return false;
        }
        if (text.data[i] == '\n' && (i == 0 || text.data[i - 1] != '\r')) {
            return false;
        }
    }
    return true;
}

static int repair_line_ends(struct span text, struct buf *out)
{
    size_t begin = 0;
    int rc = 0;
    for (size_t i = 0; i < text.len && rc == 0; i++) {
        if (text.data[i] != '\r' && text.data[i] != '\n') {
            continue;
        }
        rc = buf_append(out, span_make(text.data + begin, i - begin));
        if (rc == 0) {
            rc = buf_append(out, SPAN_LIT("\r\n"));
        }
        if (text.data[i] == '\r' && i + 1 < text.len && text.data[i + 1] == '\n') {
            i++;
        }
        begin = i + 1;
    }
    return rc == 0 ? buf_append(out, span_make(text.data + begin, text.len - begin)) : rc;
}

/* Recipients and sender as they are found, bounded. */
struct envelope {
    struct submission *submission;
    size_t room;
    size_t max;
    bool too_many;
    bool failed;
};

static void envelope_add(struct envelope *envelope, struct span address)
{
    struct submission *s = envelope->submission;
    if (s->recipient_count >= envelope->max) {
        envelope->too_many = true;
        return;
    }
    if (s->recipient_count >= envelope->room) {
        size_t room = envelope->room == 0 ? 16 : 2 * envelope->room;
        struct span *grown = arena_alloc(&s->arena, room * sizeof(*grown));
        if (grown == NULL) {
            envelope->failed = true;
            return;
        }
        if (s->recipient_count > 0) {
            memcpy(grown, s->recipients, s->recipient_count * sizeof(*grown));
        }
        s->recipients = grown;
        envelope->room = room;
    }
    struct span kept = arena_dup(&s->arena, address);
    envelope->failed = envelope->failed || kept.data == NULL;
    s->recipients[s->recipient_count++] = kept;
    s->smtputf8 = s->smtputf8 || codec_has_8bit(address);
}

static void envelope_add_list(struct envelope *envelope, struct span list)
{
    struct mailbox mailbox;
    while (!envelope->failed && !envelope->too_many &&
           mailbox_next(&list, &envelope->submission->arena, &mailbox)) {
        envelope_add(envelope, mailbox.address);
    }
}

/* ?from=&to=&lane=. False: the call was answered. */
static bool envelope_from_query(struct api_call *call, struct envelope *envelope,
                                bool *out_has_from)
{
    struct span rest = call->request->query;
    struct span name = {0};
    struct span value = {0};
    bool bad = false;
    struct submission *s = envelope->submission;
    while (http_query_next(call->request, &rest, &name, &value, &bad)) {
        if (span_eq(name, SPAN_LIT("from"))) {
            s->reverse_path = arena_dup(&s->arena,
                                        span_eq(value, SPAN_LIT("<>")) ? SPAN_LIT("") : value);
            envelope->failed = envelope->failed || s->reverse_path.data == NULL;
            s->smtputf8 = s->smtputf8 || codec_has_8bit(value);
            *out_has_from = true;
        } else if (span_eq(name, SPAN_LIT("to"))) {
            envelope_add_list(envelope, value);
        } else if (span_eq(name, SPAN_LIT("lane"))) {
            s->lane = arena_dup(&s->arena, value);
            envelope->failed = envelope->failed || s->lane.data == NULL;
        } else {
            api_refuse(call, 422, "The query may hold from, to and lane.");
            return false;
        }
    }
    if (bad) {
        api_refuse(call, 400, "The query cannot be decoded.");
        return false;
    }
    return true;
}

static void envelope_from_header(struct envelope *envelope, struct span header, bool has_from,
                                 bool has_to)
{
    struct submission *s = envelope->submission;
    struct span sender = {0};
    struct field field;
    while (fields_next(&header, &field)) {
        bool is_from = span_ieq(field.name, SPAN_LIT("From"));
        bool is_sender = span_ieq(field.name, SPAN_LIT("Sender"));
        if ((is_from || (is_sender && sender.data == NULL)) && !has_from) {
            struct span list = field.value;
            struct mailbox mailbox;
            if (mailbox_next(&list, &s->arena, &mailbox)) {
                sender = mailbox.address;
                has_from = is_from;
            }
        } else if (!has_to &&
                   (span_ieq(field.name, SPAN_LIT("To")) || span_ieq(field.name, SPAN_LIT("Cc")) ||
                    span_ieq(field.name, SPAN_LIT("Bcc")))) {
            envelope_add_list(envelope, field.value);
        }
    }
    if (sender.data != NULL) {
        s->reverse_path = arena_dup(&s->arena, sender);
        envelope->failed = envelope->failed || s->reverse_path.data == NULL;
        s->smtputf8 = s->smtputf8 || codec_has_8bit(sender);
    }
}

/* False: the call was answered. */
static bool take_rfc822_envelope(struct api_call *call)
{
    struct submission *s = &call->submission;
    struct envelope envelope = {.submission = s, .max = call->api->conf.max_recipients};
    bool has_from = false;
    if (!envelope_from_query(call, &envelope, &has_from)) {
        return false;
    }
    struct span header = {0};
    struct span rest = {0};
    fields_split(s->message, &header, &rest);
    bool has_to = s->recipient_count > 0;
    if (!has_from || !has_to) {
        envelope_from_header(&envelope, header, has_from, has_to);
    }
    if (envelope.too_many) {
        api_problem(call,
                    &(struct problem){
                        .status = 422,
                        .name = "too-many-recipients",
                        .detail = "The message has more recipients than a message may have."});
        return false;
    }
    if (envelope.failed) {
        api_unavailable(call, "There is no memory for this request now.");
        return false;
    }
    if (s->reverse_path.data == NULL) {
        api_refuse(call, 422, "The message has no sender: neither ?from= nor a From field.");
        return false;
    }
    if (s->reverse_path.len > 0 && !address_valid(s->reverse_path, true)) {
        api_refuse(call, 422, "The sender is not an e-mail address.");
        return false;
    }
    return true;
}

static void post_rfc822(struct api_call *call, struct span body)
{
    if (body.len > 0 && memchr(body.data, '\0', body.len) != NULL) {
        /* As over SMTP: no service takes it (RFC 5322 2.1, 4). */
        api_refuse(call, 422, "The message holds a NUL byte.");
        return;
    }
    call->submission.message = body;
    if (!line_ends_good(body)) {
        buf_init(&call->message, call->api->conf.max_message_bytes);
        int rc = repair_line_ends(body, &call->message);
        if (rc == ERR_LIMIT) {
            api_problem(call, &(struct problem){
                                  .status = 413,
                                  .name = "too-large",
                                  .detail = "The message is larger than this gateway accepts."});
            return;
        }
        if (rc != 0) {
            api_unavailable(call, "There is no memory for this request now.");
            return;
        }
        call->submission.message = buf_span(&call->message);
        buf_release(&call->body);
    }
    if (take_rfc822_envelope(call)) {
        submit(call);
    }
}

void messages_post(struct api_call *call)
{
    struct span type = http_request_header(call->request, "content-type");
    struct span media = span_trim(span_cut(&type, ';'));
    bool is_json = span_ieq(media, SPAN_LIT("application/json"));
    if (!is_json && !span_ieq(media, SPAN_LIT("message/rfc822"))) {
        api_refuse(call, 415, "The body must be application/json or message/rfc822.");
        return;
    }
    http_request_take_body(call->request, &call->body);
    struct span body = buf_span(&call->body);
    arena_init(&call->submission.arena, call->api->conf.max_message_bytes + ARENA_EXTRA_BYTES);
    call->submitted = true;
    if (!take_idempotency(call, body)) {
        return;
    }
    if (is_json) {
        post_json(call, body);
    } else {
        post_rfc822(call, body);
    }
}

/* Looking up. */

const char *message_state(const struct message *message)
{
    bool any = false;
    bool same = true;
    enum recipient_state first = RECIPIENT_QUEUED;
    for (size_t b = 0; b < message->batch_count; b++) {
        for (size_t i = 0; i < message->batches[b].recipient_count; i++) {
            enum recipient_state state = message->batches[b].recipients[i].state;
            if (state == RECIPIENT_QUEUED) {
                return recipient_state_name(RECIPIENT_QUEUED);
            }
            first = any ? first : state;
            same = same && state == first;
            any = true;
        }
    }
    return same ? recipient_state_name(first) : "partial";
}

static json_t *recipient_object(const struct batch *batch, const struct recipient *recipient)
{
    json_t *item = json_object();
    bool open = recipient->state == RECIPIENT_QUEUED;
    (void)json_object_set_new(item, "address", api_text(recipient->address));
    (void)json_object_set_new(item, "state", json_string(recipient_state_name(recipient->state)));
    (void)json_object_set_new(item, "backend", api_text(batch->backend));
    (void)json_object_set_new(item, "account",
                              batch->account.len > 0 ? api_text(batch->account) : json_null());
    (void)json_object_set_new(item, "batch", json_integer(batch->number));
    (void)json_object_set_new(item, "batch_state", json_string(batch_state_name(batch->state)));
    (void)json_object_set_new(item, "attempts", json_integer(batch->attempts));
    (void)json_object_set_new(item, "last_reply",
                              recipient->last_reply.len > 0 ? api_text(recipient->last_reply)
                                                            : json_null());
    if (batch->reason.len > 0) {
        (void)json_object_set_new(item, "reason", api_text(batch->reason));
    }
    (void)json_object_set_new(item, "next_attempt_at",
                              open && batch->state == BATCH_DELAYED ? api_time(batch->due_ms)
                                                                    : json_null());
    (void)json_object_set_new(item, "at", api_time(recipient->at_ms));
    return item;
}

static size_t recipient_total(const struct message *message)
{
    size_t total = 0;
    for (size_t b = 0; b < message->batch_count; b++) {
        total += message->batches[b].recipient_count;
    }
    return total;
}

static json_t *tags_of(struct span tags)
{
    json_t *list = json_array();
    while (tags.len > 0) {
        (void)json_array_append_new(list, api_text(span_cut(&tags, '\n')));
    }
    return list;
}

json_t *message_object(const struct message *message, size_t *budget)
{
    size_t total = recipient_total(message);
    bool listed = total <= *budget;
    *budget -= listed ? total : 0;
    json_t *object = json_object();
    (void)json_object_set_new(object, "id", api_text(message->id));
    (void)json_object_set_new(object, "message_id", api_text(message->message_id));
    (void)json_object_set_new(object, "client", api_text(message->client));
    (void)json_object_set_new(object, "lane", api_text(message->lane));
    (void)json_object_set_new(object, "from", api_text(message->header_from));
    (void)json_object_set_new(object, "reverse_path", api_text(message->reverse_path));
    (void)json_object_set_new(object, "subject", api_text(message->subject));
    (void)json_object_set_new(object, "source", api_text(message->source));
    (void)json_object_set_new(object, "tags", tags_of(message->tags));
    (void)json_object_set_new(object, "accepted_at", api_time(message->accepted_ms));
    (void)json_object_set_new(object, "expires_at", api_time(message->expires_ms));
    (void)json_object_set_new(object, "state", json_string(message_state(message)));
    json_int_t counts[RECIPIENT_STATE_COUNT] = {0};
    json_t *recipients = json_array();
    for (size_t b = 0; b < message->batch_count; b++) {
        const struct batch *batch = &message->batches[b];
        for (size_t i = 0; i < batch->recipient_count; i++) {
            counts[batch->recipients[i].state]++;
            if (listed) {
                (void)json_array_append_new(recipients,
                                            recipient_object(batch, &batch->recipients[i]));
            }
        }
    }
    json_t *by_state = json_object();
    for (int state = 0; state < RECIPIENT_STATE_COUNT; state++) {
        (void)json_object_set_new(by_state, recipient_state_name((enum recipient_state)state),
                                  json_integer(counts[state]));
    }
    (void)json_object_set_new(object, "counts", by_state);
    (void)json_object_set_new(object, "recipients", recipients);
    if (!listed) {
        (void)json_object_set_new(object, "recipients_omitted", json_true());
    }
    return object;
}

static bool sees_all(const struct api_call *call)
{
    return (call->scopes & POLICY_SCOPE_ADMIN) != 0;
}

static void messages_on_show(void *ctx, int status, const struct message *message)
{
    struct api_call *call = ctx;
    if (!api_call_resume(call)) {
        return;
    }
    /* Somebody else's message is no more there than one that never was. */
    bool hidden = status == 0 && !sees_all(call) &&
                  (call->client == NULL ||
                   !span_eq(message->client, span_of(call->client->conf->name)));
    if (status == ERR_NOTFOUND || hidden) {
        api_refuse(call, 404, "There is no such message, or its history has been removed.");
    } else if (status != 0) {
        api_unavailable(call, "The queue cannot be reached.");
    } else {
        size_t budget = SIZE_MAX;
        api_call_json(call, 200, NULL, 0, message_object(message, &budget));
    }
}

static bool id_plausible(struct span id)
{
    for (size_t i = 0; i < id.len; i++) {
        char c = id.data[i];
        bool good = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                    c == '-';
        if (!good) {
            return false;
        }
    }
    return id.len > 0 && id.len <= MESSAGE_ID_MAX;
}

void messages_get(struct api_call *call)
{
    if (!id_plausible(span_of(call->param))) {
        api_refuse(call, 404, "There is no such message, or its history has been removed.");
        return;
    }
    int rc = queue_show(call->api->conf.queue, span_of(call->param), messages_on_show, call);
    if (rc == ERR_NOTFOUND || rc == ERR_INVAL) {
        api_refuse(call, 404, "There is no such message, or its history has been removed.");
    } else if (rc != 0) {
        api_unavailable(call, "The queue cannot be reached.");
    } else {
        api_call_wait(call);
    }
}
