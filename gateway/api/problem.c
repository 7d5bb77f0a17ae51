#include "gateway/api/problem.h"

#include <stdio.h>

void problem_add(json_t *errors, const char *pointer, const char *format, ...)
{
    if (json_array_size(errors) >= PROBLEM_ERRORS_MAX) {
        return;
    }
    char detail[400];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(detail, sizeof(detail), format, args); /* cut is good enough */
    va_end(args);
    json_t *item = json_object();
    (void)json_object_set_new(item, "pointer", api_text(span_of(pointer)));
    (void)json_object_set_new(item, "detail", api_text(span_of(detail)));
    (void)json_array_append_new(errors, item);
}

static json_t *problem_body(const struct api_call *call, const struct problem *problem)
{
    char type[80];
    (void)snprintf(type, sizeof(type), "urn:heave:problem:%s",
                   problem->name != NULL ? problem->name : "");
    json_t *body = json_object();
    (void)json_object_set_new(body, "type",
                              json_string(problem->name != NULL ? type : "about:blank"));
    (void)json_object_set_new(body, "title", json_string(http_status_text(problem->status)));
    (void)json_object_set_new(body, "status", json_integer(problem->status));
    (void)json_object_set_new(body, "detail", api_text(span_of(problem->detail)));
    if (call->request != NULL) {
        (void)json_object_set_new(body, "instance", api_text(call->request->path));
    }
    if (problem->errors != NULL) {
        (void)json_object_set_new(body, "errors", problem->errors);
    }
    return body;
}

void api_problem(struct api_call *call, const struct problem *problem)
{
    struct http_header headers[4];
    size_t count = 0;
    char retry[16];
    headers[count++] = (struct http_header){.name = SPAN_LIT("content-type"),
                                            .value = SPAN_LIT("application/problem+json")};
    if (problem->status == 401) {
        headers[count++] = (struct http_header){
            .name = SPAN_LIT("www-authenticate"),
            .value = SPAN_LIT("Bearer realm=\"heave\", Basic realm=\"heave\", charset=\"UTF-8\"")};
    }
    if (problem->allow != NULL) {
        headers[count++] = (struct http_header){.name = SPAN_LIT("allow"),
                                                .value = span_of(problem->allow)};
    }
    if (problem->retry_after_s > 0) {
        (void)snprintf(retry, sizeof(retry), "%d", problem->retry_after_s);
        headers[count++] = (struct http_header){.name = SPAN_LIT("retry-after"),
                                                .value = span_of(retry)};
    }
    api_call_json(call, problem->status, headers, count, problem_body(call, problem));
}

void api_refuse(struct api_call *call, int status, const char *detail)
{
    api_problem(call, &(struct problem){.status = status, .detail = detail});
}

void api_unavailable(struct api_call *call, const char *detail)
{
    api_problem(call,
                &(struct problem){
                    .status = 503, .name = "unavailable", .detail = detail, .retry_after_s = 5});
}
