#include "backends/rest.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

void rest_error_read(struct span body, struct rest_error *out)
{
    *out = (struct rest_error){.code = ""};
    json_t *json = body.len > 0 ? json_loadb(body.data, body.len, 0, NULL) : NULL;
    const json_t *error = json_object_get(json, "error");
    if (json_is_object(error)) {
        snprintf(out->code, sizeof(out->code), "%s", text_of(error, "code"));
        snprintf(out->message, sizeof(out->message), "%s", text_of(error, "message"));
    } else if (json_is_string(error)) {
        const json_t *number = json_array_get(json_object_get(json, "error_codes"), 0);
        if (json_is_integer(number)) {
            snprintf(out->code, sizeof(out->code), "%" JSON_INTEGER_FORMAT,
                     json_integer_value(number));
        }
        snprintf(out->message, sizeof(out->message), "%s %s", json_string_value(error),
                 text_of(json, "error_description"));
    }
    json_decref(json);
}

static void answer_of_failure(enum verdict_http_kind kind, const struct http_result *result,
                              struct answer *out)
{
    bool sends = kind == KIND_ACS_SEND || kind == KIND_GRAPH;
    bool unknown = sends && result->outcome == HTTP_LOST;
    verdict_own_answer(unknown ? VERDICT_UNKNOWN : VERDICT_TRANSIENT, result->why, out);
}

void rest_answer(enum verdict_http_kind kind, const struct http_result *result, struct answer *out)
{
    if (result->outcome != HTTP_ANSWERED) {
        answer_of_failure(kind, result, out);
        return;
    }
    struct rest_error error;
    rest_error_read(result->body, &error);
    struct span code = span_of(error.code[0] != '\0' ? error.code : result->error_code);
    const struct verdict_http_row *row = verdict_http_find(kind, result->status, code,
                                                           span_of(error.message));
    *out = (struct answer){
        .verdict = row->verdict,
        .scope = row->scope,
        .wait_ms = row->wait_ms,
        .code = result->status,
        .remedy = row->remedy,
    };
    if (result->retry_after_ms >= 0 && out->verdict != VERDICT_DELIVERED) {
        out->wait_ms = result->retry_after_ms > 0 ? result->retry_after_ms : 1;
        if (result->status == 503) {
            out->verdict = VERDICT_THROTTLED;
            out->scope = kind == KIND_GRAPH        ? SCOPE_ACCOUNT
                         : kind == KIND_ACS_STATUS ? SCOPE_NONE
                                                   : SCOPE_BACKEND;
        }
    }
    bool words = code.len > 0 || error.message[0] != '\0';
    snprintf(out->text, sizeof(out->text), "%" PRIu32 "%s%.*s%s%s", result->status,
             code.len > 0 ? " " : "", SPAN_FMT(code), words ? " " : "", error.message);
    if (result->request_id[0] != '\0') {
        size_t len = strlen(out->text);
        snprintf(out->text + len, sizeof(out->text) - len, " (request-id %s)", result->request_id);
    }
}

void rest_ranges_push(struct rest_ranges *ranges, size_t from, size_t count)
{
    ASSERT(ranges->count < sizeof(ranges->items) / sizeof(ranges->items[0]) && count > 0);
    ranges->items[ranges->count++] = (struct rest_range){.from = from, .count = count};
}

bool rest_ranges_pop(struct rest_ranges *ranges, struct rest_range *out)
{
    if (ranges->count == 0) {
        return false;
    }
    *out = ranges->items[--ranges->count];
    return true;
}

void rest_ranges_split(struct rest_ranges *ranges, struct rest_range range)
{
    size_t half = range.count / 2;
    ASSERT(half > 0);
    rest_ranges_push(ranges, range.from + half, range.count - half);
    rest_ranges_push(ranges, range.from, half);
}
