#include "gateway/api/openapi.h"

/* The document is kept in pieces, one per operation and schema: a C string literal has a length
 * limit, and a piece is what a change touches. All pieces are ours; one that does not parse is our
 * bug. */

struct operation {
    const char *method; /* lower-case, as OpenAPI names it */
    const char *path;
    const char *json;
};
struct schema {
    const char *name;
    const char *json;
};

static const char head[] =
    "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"heave\",\"summary\":\"Bulk notification gateway for Microsoft 365\","
    "\"license\":{\"name\":\"Apache-2.0\",\"identifier\":\"Apache-2.0\"}},"
    "\"servers\":[{\"url\":\"/\"}],"
    "\"security\":[{\"bearer\":[]},{\"apiKey\":[]},{\"basic\":[]},{}],"
    "\"paths\":{},\"components\":{\"securitySchemes\":{"
    "\"bearer\":{\"type\":\"http\",\"scheme\":\"bearer\",\"description\":\"API key of a client\"},"
    "\"apiKey\":{\"type\":\"apiKey\",\"in\":\"header\",\"name\":\"X-Api-Key\"},"
    "\"basic\":{\"type\":\"http\",\"scheme\":\"basic\",\"description\":\"User and password of a client\"}},"
    "\"responses\":{\"Problem\":{\"description\":\"RFC 9457 problem\",\"content\":{\"application/problem+json\":"
    "{\"schema\":{\"$ref\":\"#/components/schemas/Problem\"}}}}},\"schemas\":{}}}";

#define LANES_REFUSED                                                                                 \
    "\"lanes_refused\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"lane\":{" \
    "\"type\":\"string\"},\"reason\":{\"enum\":[\"bytes\",\"messages\",\"memory\",\"age\"]}}}}"
#define PROBLEM_REF "{\"$ref\":\"#/components/responses/Problem\"}"
#define JSON_OF(schema) \
    "\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/" schema "\"}}}"
#define QUERY(name, schema, text) \
    "{\"name\":\"" name "\",\"in\":\"query\",\"schema\":" schema ",\"description\":\"" text "\"}"
#define TEXT_QUERY(name, text) QUERY(name, "{\"type\":\"string\"}", text) ","
#define LIST_PARAMETERS                                                                         \
    TEXT_QUERY("q", "An address, Message-ID, tag, host or @domain, whole; or an id")            \
    TEXT_QUERY("address", "Of a recipient or the sender, or @domain")                           \
    TEXT_QUERY("message_id", "With or without angle brackets")                                  \
    TEXT_QUERY("sender", "Address in From or the reverse-path")                                 \
    TEXT_QUERY("domain", "Of a recipient")                                                      \
    TEXT_QUERY("tag", "One of its tags")                                                        \
    TEXT_QUERY("since", "Accepted at that time (RFC 3339) or so long ago (2d), or later")       \
    TEXT_QUERY("before", "Accepted before that")                                                \
    TEXT_QUERY("lane", "Only this lane")                                                        \
    TEXT_QUERY("backend", "Only messages with a batch for this backend")                        \
    TEXT_QUERY("state", "unfinished, any, or a state of a recipient or of a batch; may repeat") \
    TEXT_QUERY("cursor", "next_cursor of the page before, of the same search")                  \
    QUERY("limit", "{\"type\":\"integer\",\"minimum\":1,\"maximum\":500,\"default\":50}",       \
          "Page size")

#define WORK_ERRORS "\"401\":" PROBLEM_REF ",\"403\":" PROBLEM_REF ",\"503\":" PROBLEM_REF

static const struct operation operations[] = {
    {"post", "/v1/messages",
     "{\"operationId\":\"submitMessage\",\"summary\":\"Submit one message\","
     "\"description\":\"202 means that the message and all its batches are durable. A JSON body is composed; a "
     "message/rfc822 body is taken as it is, bare LF made CR LF, its envelope from the query or else from the header "
     "(From or Sender; To, Cc, Bcc).\","
     "\"parameters\":[{\"name\":\"Idempotency-Key\",\"in\":\"header\",\"schema\":{\"type\":\"string\",\"minLength\":1,"
     "\"maxLength\":255},\"description\":\"Same key and same request within 24 hours: the stored answer again\"}," QUERY("from", "{\"type\":\"string\"}", "message/rfc822 only: reverse-path") "," QUERY(
         "to", "{\"type\":\"array\",\"items\":{\"type\":\"string\"}}",
         "message/rfc822 only: recipients; may repeat, may hold commas") "," QUERY("lane",
                                                                                   "{\"type\":\"string\"}",
                                                                                   "message/rfc822 only") "],"
                                                                                                          "\"requestBody\":{\"required\":true,\"content\":{\"application/json\":{\"schema\":{\"$ref\":"
                                                                                                          "\"#/components/schemas/NewMessage\"}},\"message/rfc822\":{\"schema\":{\"type\":\"string\"}}}},"
                                                                                                          "\"responses\":{\"202\":{\"description\":\"Accepted and durable\",\"headers\":{\"Location\":{\"schema\":{\"type\":"
                                                                                                          "\"string\"}},\"Idempotency-Replayed\":{\"schema\":{\"const\":\"true\"},\"description\":\"Set on a stored "
                                                                                                          "answer\"}}," JSON_OF(
                                                                                                              "Accepted") "},\"400\":" PROBLEM_REF
                                                                                                                          ",\"401\":" PROBLEM_REF
                                                                                                                          ",\"403\":" PROBLEM_REF
                                                                                                                          ",\"409\":" PROBLEM_REF
                                                                                                                          ",\"413\":" PROBLEM_REF
                                                                                                                          ",\"415\":" PROBLEM_REF
                                                                                                                          ",\"422\":" PROBLEM_REF
                                                                                                                          ",\"503\":" PROBLEM_REF
                                                                                                                          "}}"},
    {"get", "/v1/messages",
     "{\"operationId\":\"listMessages\",\"summary\":\"Find messages, newest first\",\"description\":\"A client sees its own "
     "messages; with the scope admin those of all clients. A call looks at a bounded number of messages: a page may be short "
     "or empty and still have a next_cursor.\",\"parameters\":[" LIST_PARAMETERS
     "],\"responses\":{\"200\":{\"description\":\"One page\"," JSON_OF(
         "MessagePage") "},\"401\":" PROBLEM_REF ",\"403\":" PROBLEM_REF ",\"422\":" PROBLEM_REF
                        ",\"503\":" PROBLEM_REF "}}"},
    {"get", "/v1/messages/{id}",
     "{\"operationId\":\"getMessage\",\"summary\":\"State of one message per recipient\",\"parameters\":[{\"name\":"
     "\"id\",\"in\":\"path\",\"required\":true,\"schema\":{\"type\":\"string\"}}],\"responses\":{\"200\":{"
     "\"description\":\"The message\"," JSON_OF(
         "Message") "},\"401\":" PROBLEM_REF ",\"403\":" PROBLEM_REF ",\"404\":" PROBLEM_REF
                    ",\"503\":" PROBLEM_REF "}}"},
    {"delete", "/v1/messages/{id}",
     "{\"operationId\":\"cancelMessage\",\"summary\":\"Cancel what has not left\",\"parameters\":[{\"name\":"
     "\"id\",\"in\":\"path\",\"required\":true,\"schema\":{\"type\":\"string\"}}],\"responses\":{\"200\":{"
     "\"description\":\"What was cancelled; busy batches are being sent\"," JSON_OF(
         "Worked") "}," WORK_ERRORS ",\"404\":" PROBLEM_REF ",\"409\":" PROBLEM_REF "}}"},
    {"post", "/v1/admin/queue/{verb}",
     "{\"operationId\":\"work\",\"summary\":\"Hold, release, retry, cancel, move, purge or replay messages\","
     "\"description\":\"Works through at most limit messages; with a next_cursor there is more: send the same body with "
     "it. Batches that are claimed are never touched, they count as busy.\",\"parameters\":[{\"name\":\"verb\",\"in\":"
     "\"path\",\"required\":true,\"schema\":{\"enum\":[\"hold\",\"release\",\"retry\",\"cancel\",\"move\","
     "\"purge\",\"replay\"]}}],\"requestBody\":{\"required\":true," JSON_OF(
         "Work") "},\"responses\":{\"200\":{"
                 "\"description\":\"What matched and what was done\"," JSON_OF(
                     "Worked") "}," WORK_ERRORS ",\"400\":" PROBLEM_REF ",\"404\":" PROBLEM_REF
                               ",\"422\":" PROBLEM_REF "}}"},
    {"get", "/v1/admin/dead-letters",
     "{\"operationId\":\"listDeadLetters\",\"summary\":\"Messages with recipients that failed, expired or are unknown, "
     "as long as they can be replayed; the last first\",\"parameters\":[" LIST_PARAMETERS "," QUERY(
         "client", "{\"type\":\"string\"}",
         "Only this client") "],\"responses\":{\"200\":{\"description\":"
                             "\"One page\"," JSON_OF("MessagePage") "}," WORK_ERRORS
                                                                    ",\"422\":" PROBLEM_REF "}}"},
    {"get", "/v1/admin/queue",
     "{\"operationId\":\"queueTotals\",\"summary\":\"Depth per lane and backend\",\"responses\":{\"200\":{"
     "\"description\":\"Totals\"," JSON_OF("QueueTotals") "},\"401\":" PROBLEM_REF
                                                          ",\"403\":" PROBLEM_REF
                                                          ",\"503\":" PROBLEM_REF "}}"},
    {"get", "/v1/admin/messages",
     "{\"operationId\":\"listAllMessages\",\"summary\":\"Messages of all clients, newest first\",\"parameters\":[" LIST_PARAMETERS
     "," QUERY("client", "{\"type\":\"string\"}", "Only this client") "],\"responses\":{\"200\":{\"description\":\"One page\"," JSON_OF(
         "MessagePage") "},\"401\":" PROBLEM_REF ",\"403\":" PROBLEM_REF ",\"422\":" PROBLEM_REF
                        ",\"503\":" PROBLEM_REF "}}"},
    {"get", "/metrics",
     "{\"operationId\":\"metrics\",\"summary\":\"Prometheus text format\",\"responses\":{\"200\":{\"description\":"
     "\"All series\",\"content\":{\"text/plain\":{\"schema\":{\"type\":\"string\"}}}},\"401\":" PROBLEM_REF
     ",\"403\":" PROBLEM_REF "}}"},
    {"get", "/livez",
     "{\"operationId\":\"live\",\"summary\":\"The process is alive\",\"security\":[],\"responses\":{\"200\":{"
     "\"description\":\"Alive\"," JSON_OF("Live") "}}}"},
    {"get", "/readyz",
     "{\"operationId\":\"ready\",\"summary\":\"Messages may be accepted\",\"security\":[],\"responses\":{\"200\":{"
     "\"description\":\"Redis is up and the gateway is not draining\"," JSON_OF(
         "Ready") "},\"503\":{\"description\":"
                  "\"Not now; reason says why\"," JSON_OF("Ready") "}}}"},
    {"get", "/openapi.json",
     "{\"operationId\":\"openapi\",\"summary\":\"This document\",\"security\":[],\"responses\":{\"200\":{"
     "\"description\":\"OpenAPI 3.1\",\"content\":{\"application/json\":{\"schema\":{\"type\":\"object\"}}}}}}"},
};

static const struct schema schemas[] = {
    {"Address",
     "{\"oneOf\":[{\"type\":\"string\",\"description\":\"a@b, Name <a@b>, or several with commas\"},{\"type\":"
     "\"object\",\"required\":[\"address\"],\"properties\":{\"address\":{\"type\":\"string\"},\"name\":{"
     "\"type\":\"string\"}},\"additionalProperties\":false}]}"},
    {"Addresses",
     "{\"oneOf\":[{\"$ref\":\"#/components/schemas/Address\"},{\"type\":\"array\",\"items\":{\"$ref\":"
     "\"#/components/schemas/Address\"}}]}"},
    {"Attachment",
     "{\"type\":\"object\",\"required\":[\"name\",\"content\"],\"properties\":{\"name\":{\"type\":\"string\"},"
     "\"content_type\":{\"type\":\"string\",\"default\":\"application/octet-stream\"},\"content\":{\"type\":\"string\","
     "\"contentEncoding\":\"base64\"},\"content_id\":{\"type\":\"string\",\"description\":\"for cid: links\"},\"inline\":{"
     "\"type\":\"boolean\",\"default\":false}},\"additionalProperties\":false}"},
    {"NewMessage",
     "{\"type\":\"object\",\"required\":[\"from\"],\"properties\":{\"from\":{\"$ref\":\"#/components/schemas/Address\"},"
     "\"to\":{\"$ref\":\"#/components/schemas/Addresses\"},\"cc\":{\"$ref\":\"#/components/schemas/Addresses\"},"
     "\"bcc\":{\"$ref\":\"#/components/schemas/Addresses\"},\"reply_to\":{\"$ref\":\"#/components/schemas/Addresses\"},"
     "\"subject\":{\"type\":\"string\"},\"text\":{\"type\":\"string\"},\"html\":{\"type\":\"string\"},\"attachments\":{"
     "\"type\":\"array\",\"maxItems\":500,\"items\":{\"$ref\":\"#/components/schemas/Attachment\"}},\"headers\":{\"type\":"
     "\"object\",\"maxProperties\":100,\"additionalProperties\":{\"type\":\"string\"},\"description\":\"Further header "
     "fields; not those with a member of their own, of MIME or of trace\"},\"lane\":{\"type\":\"string\"},\"tags\":{"
     "\"type\":\"array\",\"maxItems\":10,\"items\":{\"type\":\"string\",\"maxLength\":64},\"description\":\"Checked and "
     "kept out of the message that is sent\"},\"dedup_key\":{\"type\":\"string\",\"maxLength\":255,\"description\":"
     "\"What makes this message a repeat of another, in place of its subject, where the client has a dedup window\"},"
     "\"send_at\":{\"type\":\"string\",\"format\":\"date-time\"},\"expires_in\":{"
     "\"oneOf\":[{\"type\":\"string\",\"pattern\":\"^[0-9]+[smhd]?$\"},{\"type\":\"integer\",\"minimum\":1}],"
     "\"description\":\"Duration, or seconds; at most 30 days\"}},\"additionalProperties\":false}"},
    {"Accepted",
     "{\"type\":\"object\",\"required\":[\"id\",\"accepted\",\"rejected\",\"batches\"],\"properties\":{\"id\":{"
     "\"type\":\"string\"},\"accepted\":{\"type\":\"integer\",\"description\":\"Distinct recipients\"},"
     "\"rejected\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"address\":{\"type\":"
     "\"string\"},\"reason\":{\"type\":\"string\"}}}},\"batches\":{\"type\":\"integer\"},\"collected\":{\"const\":true,\"description\":\"Will be sent in the digest id\"},\"deduplicated\":{\"const\":true,\"description\":\"A repeat within "
     "the client's window: not sent again; id is that of the last one that was\"}}}"},
    {"Work",
     "{\"type\":\"object\",\"properties\":{\"ids\":{\"type\":\"array\",\"maxItems\":500,\"items\":{\"type\":"
     "\"string\"},\"description\":\"Message ids, or id/batch\"},\"selector\":{\"type\":\"object\",\"properties\":{"
     "\"lane\":{\"type\":\"string\"},\"backend\":{\"type\":\"string\"},\"client\":{\"type\":\"string\"},"
     "\"sender\":{\"type\":\"string\",\"description\":\"Of From or the reverse-path; or *@domain\"},\"domain\":{"
     "\"type\":\"string\",\"description\":\"Of a recipient; cancel and replay are then for those only\"},\"tag\":{"
     "\"type\":\"string\"},\"state\":{\"enum\":[\"ready\",\"delayed\",\"held\",\"failed\",\"expired\","
     "\"unknown\",\"finished\"]},\"older_than\":{\"type\":\"string\",\"description\":\"2d, or a time\"}},"
     "\"additionalProperties\":false},\"all\":{\"type\":\"boolean\",\"description\":\"Needed without ids and "
     "selector\"},\"reason\":{\"type\":\"string\"},\"to\":{\"type\":\"string\",\"description\":\"move: the backend"
     "\"},\"reset\":{\"type\":\"boolean\",\"description\":\"retry: as if never tried\"},\"dry_run\":{\"type\":"
     "\"boolean\"},\"limit\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":10000,\"default\":2000},\"cursor\":{"
     "\"type\":\"string\"}},\"additionalProperties\":false}"},
    {"Worked",
     "{\"type\":\"object\",\"properties\":{\"verb\":{\"type\":\"string\"},\"dry_run\":{\"type\":\"boolean\"},"
     "\"matched\":{\"type\":\"object\",\"properties\":{\"messages\":{\"type\":\"integer\"},\"batches\":{\"type\":"
     "\"integer\"},\"recipients\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"},"
     "\"description\":\"By the state they had\"}}},\"changed\":{\"type\":\"integer\",\"description\":\"Batches\"},"
     "\"busy\":{\"type\":\"integer\",\"description\":\"Batches that are claimed\"},\"skipped_count\":{\"type\":"
     "\"integer\"},\"skipped\":{\"type\":\"array\",\"maxItems\":100,\"items\":{\"type\":\"object\",\"properties\":{"
     "\"id\":{\"type\":\"string\"},\"batch\":{\"type\":[\"integer\",\"null\"]},\"reason\":{\"type\":\"string\"}}}},"
     "\"next_cursor\":{\"type\":[\"string\",\"null\"]},\"id\":{\"type\":\"string\"}}}"},
    {"RecipientState",
     "{\"enum\":[\"queued\",\"delivered\",\"failed\",\"expired\",\"suppressed\",\"cancelled\","
     "\"unknown\"]}"},
    {"Recipient",
     "{\"type\":\"object\",\"properties\":{\"address\":{\"type\":\"string\"},\"state\":{\"$ref\":"
     "\"#/components/schemas/RecipientState\"},\"backend\":{\"type\":\"string\"},\"account\":{\"type\":[\"string\","
     "\"null\"]},\"batch\":{\"type\":\"integer\"},\"batch_state\":{\"enum\":[\"ready\",\"claimed\",\"started\",\"delayed\","
     "\"held\",\"done\"]},\"attempts\":{\"type\":\"integer\"},\"last_reply\":{\"type\":[\"string\",\"null\"]},"
     "\"reason\":{\"type\":\"string\",\"description\":\"Why the batch is held or was cancelled\"},"
     "\"next_attempt_at\":{\"type\":[\"string\",\"null\"],\"format\":\"date-time\"},\"at\":{\"type\":[\"string\",\"null\"],"
     "\"format\":\"date-time\",\"description\":\"Last change of state\"}}}"},
    {"Message",
     "{\"type\":\"object\",\"properties\":{\"id\":{\"type\":\"string\"},\"message_id\":{\"type\":\"string\"},\"client\":{"
     "\"type\":\"string\"},\"lane\":{\"type\":\"string\"},\"from\":{\"type\":\"string\"},\"reverse_path\":{\"type\":"
     "\"string\"},\"subject\":{\"type\":\"string\"},\"source\":{\"type\":\"string\"},"
     "\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},\"accepted_at\":{\"type\":\"string\",\"format\":\"date-time\"},"
     "\"expires_at\":{\"type\":[\"string\",\"null\"],\"format\":\"date-time\"},\"state\":{\"enum\":[\"queued\",\"delivered\","
     "\"failed\",\"expired\",\"suppressed\",\"cancelled\",\"unknown\",\"partial\"],\"description\":\"queued while any "
     "recipient is; the state all recipients share; partial when they ended differently\"},\"counts\":{\"type\":\"object\","
     "\"description\":\"Recipients by state\",\"additionalProperties\":{\"type\":\"integer\"}},\"recipients\":{\"type\":"
     "\"array\",\"items\":{\"$ref\":\"#/components/schemas/Recipient\"}},"
     "\"recipients_omitted\":{\"const\":true,\"description\":\"In lists: the message has too many recipients to name "
     "them on this page\"}}}"},
    {"MessagePage",
     "{\"type\":\"object\",\"properties\":{\"messages\":{\"type\":\"array\",\"items\":{\"$ref\":"
     "\"#/components/schemas/Message\"}},\"next_cursor\":{\"type\":[\"string\",\"null\"]}}}"},
    {"QueueTotals",
     "{\"type\":\"object\",\"properties\":{\"queues\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{"
     "\"lane\":{\"type\":\"string\"},\"backend\":{\"type\":\"string\"},\"batches\":{\"type\":\"object\","
     "\"additionalProperties\":{\"type\":\"integer\"}},\"since\":{\"type\":\"object\",\"description\":\"By state: ready, "
     "claimed, started: when the oldest was accepted; delayed: when the next is due; held: since when the first is "
     "held\",\"additionalProperties\":{\"type\":[\"string\",\"null\"],\"format\":\"date-time\"}},\"oldest_ready_at\":{\"type\":[\"string\",\"null\"],\"format\":"
     "\"date-time\"},\"oldest_ready_age_ms\":{\"type\":[\"integer\",\"null\"]}}}},\"bytes\":{\"type\":\"integer\"}," LANES_REFUSED
     ",\"messages_open\":{\"type\":\"integer\"},\"recipients\":{\"type\":\"object\",\"additionalProperties\":{\"type\":"
     "\"integer\"}}}}"},
    {"Live",
     "{\"type\":\"object\",\"properties\":{\"status\":{\"const\":\"alive\"},\"version\":{\"type\":\"string\"}}}"},
    {"Ready",
     "{\"type\":\"object\",\"properties\":{\"status\":{\"enum\":[\"ready\",\"not ready\"]},\"redis\":{\"enum\":["
     "\"up\",\"down\"]},\"draining\":{\"type\":\"boolean\"},\"durability\":{\"enum\":[\"fsync\",\"replicated\","
     "\"memory\"]}," LANES_REFUSED ",\"reason\":{\"type\":\"string\"}}}"},
    {"Problem",
     "{\"type\":\"object\",\"required\":[\"type\",\"title\",\"status\",\"detail\"],\"properties\":{\"type\":{\"type\":"
     "\"string\",\"format\":\"uri-reference\"},\"title\":{\"type\":\"string\"},\"status\":{\"type\":\"integer\"},\"detail\":{"
     "\"type\":\"string\"},\"instance\":{\"type\":\"string\"},\"errors\":{\"type\":\"array\",\"items\":{\"type\":\"object\","
     "\"properties\":{\"pointer\":{\"type\":\"string\",\"format\":\"json-pointer\"},\"detail\":{\"type\":\"string\"}}}}}}"},
};

static json_t *parsed(const char *text)
{
    json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    ASSERT(value != NULL);
    return value;
}

json_t *openapi_document(void)
{
    json_t *document = parsed(head);
    json_t *info = json_object_get(document, "info");
    (void)json_object_set_new(info, "version", json_string(HEAVE_VERSION));
    json_t *paths = json_object_get(document, "paths");
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        json_t *path = json_object_get(paths, operations[i].path);
        if (path == NULL) {
            path = json_object();
            (void)json_object_set_new(paths, operations[i].path, path);
        }
        (void)json_object_set_new(path, operations[i].method, parsed(operations[i].json));
    }
    json_t *all = json_object_get(json_object_get(document, "components"), "schemas");
    for (size_t i = 0; i < sizeof(schemas) / sizeof(schemas[0]); i++) {
        (void)json_object_set_new(all, schemas[i].name, parsed(schemas[i].json));
    }
    return document;
}

void openapi_get(struct api_call *call)
{
    api_call_json(call, 200, NULL, 0, openapi_document());
}
