#include "bench/sim/graph_message.h"

#include "bench/sim/text.h"
#include "gateway/base/codec.h"

#define HEADERS_MAX 5 /* internetMessageHeaders of the JSON form */

static const struct graph_problem BAD_REQUEST = {400, "ErrorInvalidRequest",
                                                 "The request is invalid or malformed."};
static const struct graph_problem BAD_RECIPIENTS = {400, "ErrorInvalidRecipients",
                                                    "At least one recipient isn't valid."};
static const struct graph_problem TOO_MANY = {
    400, "ErrorExceededMaxRecipientLimit",
    "The number of recipients exceeds the maximum for one message."};
static const struct graph_problem BAD_BASE64 = {400, "ErrorMimeContentInvalidBase64String",
                                                "Invalid base64 string for MIME content."};
static const struct graph_problem BAD_MIME = {400, "ErrorMimeContentInvalid",
                                              "The MIME content is invalid."};
static const struct graph_problem BAD_HEADER = {
    400, "InvalidInternetMessageHeader",
    "The internet message header name should start with 'x-' or 'X-'."};
static const struct graph_problem MANY_HEADERS = {
    400, "InvalidInternetMessageHeaderCollection",
    "Maximum number of headers in one message should be less than or "
    "equal to 5."};
static const struct graph_problem BAD_ATTACHMENT = {400, "ErrorInvalidRequest",
                                                    "An attachment is invalid."};

static struct span text_of(const json_t *value)
{
    return json_is_string(value) ? span_make(json_string_value(value), json_string_length(value))
                                 : (struct span){0};
}

void graph_message_release(struct graph_message *message)
{
    buf_release(&message->text);
    buf_release(&message->mime);
    mem_free(message->recipients);
    *message = (struct graph_message){0};
}

/* Collects addresses into message->text; the spans are made when all are there, because the buf
 * moves. */
struct collector {
    struct graph_message *message;
    const struct sim_conf *conf;
    size_t *ends;
    size_t count;
    const struct graph_problem *problem;
};

static int add_address(void *ctx, struct span address)
{
    struct collector *c = ctx;
    if (!text_is_address(address)) {
        c->problem = &BAD_RECIPIENTS;
    } else if (c->count == c->conf->graph_max_recipients) {
        c->problem = &TOO_MANY;
    } else if (buf_append(&c->message->text, address) != 0) {
        c->problem = &BAD_REQUEST;
    } else {
        c->ends[c->count++] = buf_len(&c->message->text);
    }
    return c->problem != NULL ? 1 : 0;
}

/* Copies a text behind the addresses and returns where it begins; its length is what was given. */
static size_t keep_text(struct graph_message *message, struct span text)
{
    size_t at = buf_len(&message->text);
    return buf_append(&message->text, text) == 0 ? at : SIZE_MAX;
}

/* Turns the collected ends into spans; `from` and `id` (may be empty) are kept with them. */
static const struct graph_problem *finish(struct collector *c, struct span from, struct span id)
{
    struct graph_message *message = c->message;
    size_t from_at = keep_text(message, from);
    size_t id_at = keep_text(message, id);
    if (c->count == 0) {
        return &BAD_RECIPIENTS;
    }
    if (from_at == SIZE_MAX || id_at == SIZE_MAX) {
        return &BAD_REQUEST;
    }
    const char *text = buf_span(&message->text).data;
    message->recipients = mem_alloc(c->count * sizeof(*message->recipients));
    size_t start = 0;
    for (size_t i = 0; i < c->count; i++) {
        message->recipients[i] = span_make(text + start, c->ends[i] - start);
        start = c->ends[i];
    }
    message->recipient_count = c->count;
    message->from = span_make(text + from_at, from.len);
    message->message_id = span_make(text + id_at, id.len);
    return NULL;
}

static struct collector start(const struct sim_conf *conf, struct graph_message *message,
                              size_t body_bytes)
{
    buf_init(&message->text, body_bytes + 4096);
    buf_init(&message->mime, body_bytes + 1);
    return (struct collector){
        .message = message,
        .conf = conf,
        .ends = mem_alloc((conf->graph_max_recipients + 1) * sizeof(size_t)),
    };
}

static void collect_json(struct collector *c, const json_t *list)
{
    size_t index = 0;
    json_t *item = NULL;
    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        c->problem = &BAD_REQUEST;
        return;
    }
    json_array_foreach(list, index, item)
    {
        struct span address = text_of(
            json_object_get(json_object_get(item, "emailAddress"), "address"));
        if (address.data == NULL) {
            c->problem = &BAD_RECIPIENTS;
        }
        if (c->problem != NULL || add_address(c, address) != 0) {
            return;
        }
    }
}

static const struct graph_problem *check_headers(const json_t *list)
{
    size_t index = 0;
    json_t *item = NULL;
    if (json_array_size(list) > HEADERS_MAX) {
        return &MANY_HEADERS;
    }
    json_array_foreach(list, index, item)
    {
        struct span name = text_of(json_object_get(item, "name"));
        if (!span_istarts(name, SPAN_LIT("x-")) ||
            !json_is_string(json_object_get(item, "value"))) {
            return &BAD_HEADER;
        }
    }
    return NULL;
}

static const struct graph_problem *check_attachments(const json_t *list)
{
    size_t index = 0;
    json_t *item = NULL;
    json_array_foreach(list, index, item)
    {
        struct span content = text_of(json_object_get(item, "contentBytes"));
        struct buf decoded;
        buf_init(&decoded, content.len + 1);
        bool good = text_of(json_object_get(item, "name")).len > 0 && content.data != NULL &&
                    text_of(json_object_get(item, "@odata.type")).len > 0 &&
                    codec_base64_decode(content, false, &decoded) == 0;
        buf_release(&decoded);
        if (!good) {
            return &BAD_ATTACHMENT;
        }
    }
    return NULL;
}

static const struct graph_problem *check_json(const json_t *json, const json_t *message)
{
    const json_t *save = json_object_get(json, "saveToSentItems");
    const json_t *body = json_object_get(message, "body");
    if (!json_is_object(message) || (save != NULL && !json_is_boolean(save))) {
        return &BAD_REQUEST;
    }
    if (body != NULL &&
        (!json_is_object(body) || !json_is_string(json_object_get(body, "content")))) {
        return &BAD_REQUEST;
    }
    const struct graph_problem *problem = check_headers(
        json_object_get(message, "internetMessageHeaders"));
    return problem != NULL ? problem : check_attachments(json_object_get(message, "attachments"));
}

/* The end of both forms: gives the collector's memory back, and the message's when there is a
 * problem. */
static const struct graph_problem *conclude(struct collector *c,
                                            const struct graph_problem *problem)
{
    mem_free(c->ends);
    if (problem != NULL) {
        graph_message_release(c->message);
    }
    return problem;
}

const struct graph_problem *graph_message_json(const struct sim_conf *conf, const json_t *json,
                                               struct graph_message *out)
{
    static const char *const LISTS[] = {"toRecipients", "ccRecipients", "bccRecipients"};
    const json_t *message = json_object_get(json, "message");
    const struct graph_problem *problem = check_json(json, message);
    if (problem != NULL) {
        return problem;
    }
    *out = (struct graph_message){0};
    struct collector c = start(conf, out, (size_t)conf->graph_max_bytes);
    for (size_t i = 0; i < 3 && c.problem == NULL; i++) {
        collect_json(&c, json_object_get(message, LISTS[i]));
    }
    if (c.problem == NULL) {
        const json_t *from = json_object_get(json_object_get(message, "from"), "emailAddress");
        c.problem = finish(&c, text_of(json_object_get(from, "address")),
                           text_of(json_object_get(message, "internetMessageId")));
    }
    return conclude(&c, c.problem);
}

const struct graph_problem *graph_message_mime(const struct sim_conf *conf, struct span body,
                                               struct graph_message *out)
{
    *out = (struct graph_message){0};
    struct collector c = start(conf, out, body.len);
    char room[1024];
    if (body.len == 0 || codec_base64_decode(body, true, &out->mime) != 0) {
        return conclude(&c, &BAD_BASE64);
    }
    struct span rest = buf_span(&out->mime);
    struct span name = {0};
    struct span value = {0};
    bool any = false;
    while (rest.len > 0 && c.problem == NULL && text_next_field(&rest, &name, &value)) {
        any = true;
        if (span_ieq(name, SPAN_LIT("To")) || span_ieq(name, SPAN_LIT("Cc")) ||
            span_ieq(name, SPAN_LIT("Bcc"))) {
            (void)text_each_address(value, add_address, &c); /* what went wrong is in c.problem */
        }
    }
    if (c.problem == NULL && !any) {
        c.problem = &BAD_MIME;
    }
    if (c.problem == NULL) {
        struct span mime = buf_span(&out->mime);
        struct span from = text_first_address(text_header(mime, "From"), room, sizeof(room));
        c.problem = finish(&c, from, text_header(mime, "Message-ID"));
    }
    return conclude(&c, c.problem);
}
