#include "bench/sim/acs_message.h"

#include "bench/sim/text.h"
#include "gateway/base/codec.h"

/* services.md has no code for validation errors, only that the envelope and x-ms-error-code are
 * there. */
static const struct acs_problem NOT_JSON = {400, "BadRequest",
                                            "The request body is not a JSON object."};
static const struct acs_problem NO_SENDER = {400, "BadRequest", "senderAddress is required."};
static const struct acs_problem NO_SUBJECT = {400, "BadRequest", "content.subject is required."};
static const struct acs_problem NO_CONTENT = {400, "BadRequest",
                                              "content.plainText or content.html is required."};
static const struct acs_problem NO_TO = {400, "BadRequest", "recipients.to is required."};
static const struct acs_problem BAD_LIST = {400, "BadRequest",
                                            "recipients must be lists of objects with an address."};
static const struct acs_problem BAD_ADDRESS = {400, "BadRequest",
                                               "Invalid format for email address"};
static const struct acs_problem TOO_MANY = {
    400, "BadRequest", "The number of recipients exceeds the maximum allowed."};
static const struct acs_problem BAD_HEADERS = {400, "BadRequest",
                                               "headers must be a map of strings."};
static const struct acs_problem RESERVED = {400, "BadRequest", "A reserved header cannot be set."};
static const struct acs_problem BAD_ATTACHMENT = {
    400, "BadRequest", "attachments need name, contentType and contentInBase64 (valid base64)."};
static const struct acs_problem NOT_LINKED = {404, "DomainNotLinked",
                                              "The specified sender domain has not been linked."};
static const struct acs_problem BAD_USER = {
    400, "InvalidSenderUserName",
    "Invalid email sender username. Please use a username from the list of valid usernames configured by your admin."};

static struct span text_of(const json_t *value)
{
    return json_is_string(value) ? span_make(json_string_value(value), json_string_length(value))
                                 : (struct span){0};
}

static const struct acs_problem *check_sender(const struct sim_conf *conf, struct span sender)
{
    static const struct span USUAL[] = {
        {"donotreply", 10}, {"no-reply", 8}, {"noreply", 7}, {"alerts", 6},
        {"notify", 6},      {"notify1", 7},  {"notify2", 7}, {"hve", 3},
    };
    struct span domain = sim_address_domain(sender);
    if (domain.len == 0 || !text_is_address(sender)) {
        return &BAD_ADDRESS;
    }
    if (sim_list_find(&conf->domains, domain) == NULL) {
        return &NOT_LINKED;
    }
    if (conf->acs_senders.count > 0) {
        return sim_list_find(&conf->acs_senders, sender) != NULL ? NULL : &BAD_USER;
    }
    for (size_t i = 0; i < sizeof(USUAL) / sizeof(USUAL[0]); i++) {
        if (span_ieq(span_make(sender.data, sender.len - domain.len - 1), USUAL[i])) {
            return NULL;
        }
    }
    return &BAD_USER;
}

static const struct acs_problem *check_content(const json_t *content)
{
    if (!json_is_string(json_object_get(content, "subject"))) {
        return &NO_SUBJECT;
    }
    if (!json_is_string(json_object_get(content, "plainText")) &&
        !json_is_string(json_object_get(content, "html"))) {
        return &NO_CONTENT;
    }
    return NULL;
}

static const struct acs_problem *take_list(const json_t *list, struct acs_message *out)
{
    size_t index = 0;
    json_t *item = NULL;
    json_array_foreach(list, index, item)
    {
        struct span address = text_of(json_object_get(item, "address"));
        if (address.data == NULL) {
            return &BAD_LIST;
        }
        if (!text_is_address(address)) {
            return &BAD_ADDRESS;
        }
        out->recipients[out->recipient_count++] = address;
    }
    return NULL;
}

static const struct acs_problem *take_recipients(const struct sim_conf *conf,
                                                 const json_t *recipients, struct acs_message *out)
{
    static const char *const LISTS[] = {"to", "cc", "bcc"};
    size_t total = 0;
    for (size_t i = 0; i < 3; i++) {
        const json_t *list = json_object_get(recipients, LISTS[i]);
        if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
            return &BAD_LIST;
        }
        total += json_array_size(list);
    }
    if (json_array_size(json_object_get(recipients, "to")) == 0) {
        return &NO_TO;
    }
    if (total > conf->max_recipients) {
        return &TOO_MANY;
    }
    out->recipients = mem_alloc(total * sizeof(*out->recipients));
    const struct acs_problem *problem = NULL;
    for (size_t i = 0; i < 3 && problem == NULL; i++) {
        problem = take_list(json_object_get(recipients, LISTS[i]), out);
    }
    return problem;
}

static const struct acs_problem *take_headers(const json_t *headers, struct acs_message *out)
{
    /* What the service writes itself. */
    static const struct span OWN[] = {
        {"from", 4},
        {"to", 2},
        {"cc", 2},
        {"bcc", 3},
        {"subject", 7},
        {"reply-to", 8},
        {"sender", 6},
        {"received", 8},
        {"return-path", 11},
        {"dkim-signature", 14},
        {"mime-version", 12},
        {"content-type", 12},
        {"content-transfer-encoding", 25},
    };
    const char *key = NULL;
    json_t *value = NULL;
    if (headers != NULL && !json_is_null(headers) && !json_is_object(headers)) {
        return &BAD_HEADERS;
    }
    json_object_foreach((json_t *)headers, key, value)
    {
        if (!json_is_string(value)) {
            return &BAD_HEADERS;
        }
        for (size_t i = 0; i < sizeof(OWN) / sizeof(OWN[0]); i++) {
            if (span_ieq(span_of(key), OWN[i])) {
                return &RESERVED;
            }
        }
        if (span_ieq(span_of(key), SPAN_LIT("message-id"))) {
            out->message_id = text_of(value);
        }
    }
    return NULL;
}

static bool attachment_good(const json_t *item)
{
    struct span content = text_of(json_object_get(item, "contentInBase64"));
    if (!json_is_string(json_object_get(item, "name")) ||
        !json_is_string(json_object_get(item, "contentType")) || content.data == NULL) {
        return false;
    }
    struct buf decoded;
    buf_init(&decoded, content.len + 1);
    bool good = codec_base64_decode(content, false, &decoded) == 0;
    buf_release(&decoded);
    return good;
}

static const struct acs_problem *check_attachments(const json_t *list)
{
    size_t index = 0;
    json_t *item = NULL;
    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return &BAD_ATTACHMENT;
    }
    json_array_foreach(list, index, item)
    {
        if (!attachment_good(item)) {
            return &BAD_ATTACHMENT;
        }
    }
    return NULL;
}

const struct acs_problem *acs_message_read(const struct sim_conf *conf, const json_t *body,
                                           struct acs_message *out)
{
    struct acs_message message = {0};
    if (!json_is_object(body)) {
        return &NOT_JSON;
    }
    message.sender = text_of(json_object_get(body, "senderAddress"));
    const struct acs_problem *problem = message.sender.len == 0 ? &NO_SENDER : NULL;
    if (problem == NULL) {
        problem = check_content(json_object_get(body, "content"));
    }
    if (problem == NULL) {
        problem = take_recipients(conf, json_object_get(body, "recipients"), &message);
    }
    if (problem == NULL) {
        problem = take_headers(json_object_get(body, "headers"), &message);
    }
    if (problem == NULL) {
        problem = check_attachments(json_object_get(body, "attachments"));
    }
    if (problem == NULL) {
        problem = check_sender(conf, message.sender);
    }
    if (problem != NULL) {
        acs_message_release(&message);
        return problem;
    }
    *out = message;
    return NULL;
}

void acs_message_release(struct acs_message *message)
{
    mem_free(message->recipients);
    *message = (struct acs_message){0};
}
