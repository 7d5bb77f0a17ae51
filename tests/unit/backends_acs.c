/* Unit tests of backends/acs: signature vectors, the request, and deliveries against a scripted
 * service. */
#include "backends/acs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "gateway/base/codec.h"
#include "tests/lib/rest_fixture.h"

#define KEY "aGVhdmUtc2ltLWFjcy1hY2Nlc3Mta2V5LTAxMjM0NTY3"

/* ---- Signing: the vectors of services.md 2.4 ---- */

static void assert_signed(const char *key64, const char *method, const char *path, const char *date,
                          const char *host, const char *hash, const char *want)
{
    struct buf key;
    char signature[ACS_SIGNATURE_MAX];
    buf_init(&key, 100);
    assert_int_equal(codec_base64_decode(span_of(key64), false, &key), 0);
    assert_int_equal(
        acs_sign(buf_span(&key), method, span_of(path), date, span_of(host), hash, signature), 0);
    assert_string_equal(signature, want);
    buf_release(&key);
}

static void signs_as_the_official_sdk(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"/", "88MDmJhUR3m5QhFxb8ztShsSwlGrg7g/6XPnWf7QEO4="},
        {"/testPath", "RoCrHjw7fb9fpHSbqvRUY2xa8RBS0YvI1cxI1x8AS38="},
        {"/testPath?testQuery=yes", "il99+rd6V5O136roX/zVePCNle78HmvC4B7tu9zRH3I="},
    };
    char hash[ACS_SIGNATURE_MAX];
    acs_content_hash(SPAN_LIT(""), hash);
    assert_string_equal(hash, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    for (size_t i = 0; i < 3; i++) {
        assert_signed("pw==", "GET", rows[i][0], "Wed, 13 Apr 2022 18:09:12 GMT",
                      "contoso.communicationservices.azure.com", hash, rows[i][1]);
    }
    char out[ACS_SIGNATURE_MAX];
    struct span key = SPAN_LIT("\xa7");
    acs_hmac(key, SPAN_LIT("banana"), out);
    assert_string_equal(out, "88EC05aAS9iXnaimtNO78JLjiPtfWryQB/5QYEzEsu8=");
    acs_hmac(key, SPAN_LIT("\xf0\x9f\x98\x80"), out);
    assert_string_equal(out, "1rudJKjn2Zi+3hRrBG29wIF6pD6YyAeQR1ZcFtXoKAU=");
    acs_content_hash(SPAN_LIT("banana"), out);
    assert_string_equal(out, "tJPUg2Sv5E0RwBZc9HCkFk0eJgmRHvmYvoaNRq3j3k4=");
    acs_content_hash(SPAN_LIT("\xf0\x9f\x98\x80"), out);
    assert_string_equal(out, "8EQ6NCxe9UeDoRG1G6Vsk45HTDIyTZDDpgycjjo34tk=");
}

static void signs_sends_and_questions(void **state)
{
    (void)state;
    static const char key[] = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    static const char date[] = "Mon, 23 Nov 2026 12:00:00 GMT";
    static const char host[] = "contoso.communication.azure.com";
    char hash[ACS_SIGNATURE_MAX];
    acs_content_hash(
        SPAN_LIT("{\"senderAddress\":\"noreply@contoso.com\",\"content\":{\"subject\":\"Test\","
                 "\"plainText\":\"Hello\"},\"recipients\":{\"to\":[{\"address\":\"a@example.com\"}"
                 "]}}"),
        hash);
    assert_string_equal(hash, "1LHwrO8OfNsLy9jNX6LLk2L8SojgDLBx+9xBZRPzedI=");
    assert_signed(key, "POST", "/emails:send?api-version=2023-03-31", date, host, hash,
                  "sg65Xr44X6rGMihN0IBvclzwCIwmlEj5zPvLaYDIzzc=");
    assert_signed(key, "POST", "/emails:send?api-version=2025-09-01", date, host, hash,
                  "MuR3qxtaWYWfZc0J7EonLxmjc/vfc30CDMjaRsKK7II=");
    acs_content_hash(SPAN_LIT(""), hash);
    assert_signed(key, "GET",
                  "/emails/operations/8540c0de-899f-5cce-acb5-3ec493af3800?api-version=2025-09-01",
                  date, host, hash, "R2FZ2qmOH/2vr6Aa4KyDzAZl3+UaDubmLZ1C8w6mU2s=");
}

static void operation_ids_name_the_request(void **state)
{
    (void)state;
    struct sent sent;
    char first[ACS_UUID_MAX];
    char other[ACS_UUID_MAX];
    sent_prepare(&sent, 4, SPAN_LIT(""));
    acs_operation_id(&sent.delivery, 0, 4, first);
    assert_int_equal(strlen(first), 36);
    assert_int_equal(first[14], '5');
    assert_non_null(strchr("89ab", first[19]));
    sent.delivery.maybe_sent = true;
    acs_operation_id(&sent.delivery, 0, 4, other);
    assert_string_equal(first, other);
    acs_operation_id(&sent.delivery, 0, 3, other);
    assert_string_not_equal(first, other);
    acs_operation_id(&sent.delivery, 1, 3, other);
    assert_string_not_equal(first, other);
    sent.delivery.epoch = 1;
    acs_operation_id(&sent.delivery, 0, 4, other);
    assert_string_not_equal(first, other);
    sent.delivery.epoch = 0;
    sent.delivery.batch_number = 4;
    acs_operation_id(&sent.delivery, 0, 4, other);
    assert_string_not_equal(first, other);
}

/* ---- The request body ---- */

static struct mail_address view_to[2];
static struct mail_address view_cc[1];

static struct mail_view sample_view(void)
{
    view_to[0] = (struct mail_address){.address = SPAN_LIT("R1@EXAMPLE.com"),
                                       .name = SPAN_LIT("Say \"hi\"\\\n")};
    view_to[1] = (struct mail_address){.address = SPAN_LIT("elsewhere@example.com")};
    view_cc[0] = (struct mail_address){.address = SPAN_LIT("r2@example.com")};
    return (struct mail_view){
        .subject = SPAN_LIT("Gr\xc3\xbc\xc3\x9f"
                            "e"),
        .message_id = SPAN_LIT("<1@x>"),
        .from = {.address = SPAN_LIT("app@contoso.com"), .name = SPAN_LIT("App")},
        .to = view_to,
        .to_count = 2,
        .cc = view_cc,
        .cc_count = 1,
        .text = SPAN_LIT("text\r\n"),
        .has_text = true,
    };
}

static json_t *written(const struct mail_view *view, const struct delivery *delivery, size_t from,
                       size_t count)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    assert_int_equal(acs_message_write(view, delivery, from, count, "no-reply@contoso.com",
                                       "neutral@contoso.com", &out),
                     0);
    json_error_t error;
    json_t *json = json_loadb(out.data, buf_len(&out), JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        fail_msg("%s: %.*s", error.text, SPAN_FMT(buf_span(&out)));
    }
    buf_release(&out);
    return json;
}

static const char *address_at(const json_t *json, const char *list, size_t index)
{
    const json_t *items = json_object_get(json_object_get(json, "recipients"), list);
    return json_string_value(json_object_get(json_array_get(items, index), "address"));
}

static size_t address_count(const json_t *json, const char *list)
{
    return json_array_size(json_object_get(json_object_get(json, "recipients"), list));
}

static void places_recipients(void **state)
{
    (void)state;
    struct sent sent;
    struct mail_view view = sample_view();
    sent_prepare(&sent, 5, SPAN_LIT(""));
    json_t *json = written(&view, &sent.delivery, 0, 5);
    assert_int_equal(address_count(json, "to"), 1);
    assert_string_equal(address_at(json, "to", 0), "r1@example.com");
    assert_string_equal(address_at(json, "cc", 0), "r2@example.com");
    assert_int_equal(address_count(json, "bcc"), 3);
    json_decref(json);

    json = written(&view, &sent.delivery, 3, 2); /* both hidden */
    assert_string_equal(address_at(json, "to", 0), "neutral@contoso.com");
    assert_int_equal(address_count(json, "to"), 1);
    assert_int_equal(address_count(json, "bcc"), 2);
    json_decref(json);

    json = written(&view, &sent.delivery, 3, 1);
    assert_string_equal(address_at(json, "to", 0), "r3@example.com");
    assert_int_equal(address_count(json, "bcc"), 0);
    json_decref(json);

    json = written(&view, &sent.delivery, 2, 2); /* only a Cc */
    assert_string_equal(address_at(json, "to", 0), "r2@example.com");
    assert_int_equal(address_count(json, "cc"), 0);
    assert_string_equal(address_at(json, "bcc", 0), "r3@example.com");
    json_decref(json);
}

static void writes_content_headers_and_attachments(void **state)
{
    (void)state;
    struct mail_header headers[] = {
        {.name = SPAN_LIT("X-One"), .value = SPAN_LIT("1")},
        {.name = SPAN_LIT("x-one"), .value = SPAN_LIT("2")},
        {.name = SPAN_LIT("List-Unsubscribe"), .value = SPAN_LIT("<https://u>")},
        {.name = SPAN_LIT("Date"), .value = SPAN_LIT("today")},
        {.name = SPAN_LIT("Sender"), .value = SPAN_LIT("s@x")},
    };
    struct mail_attachment attachments[] = {
        {.name = SPAN_LIT("a.png"),
         .content_type = SPAN_LIT("image/png"),
         .content_id = SPAN_LIT("c1"),
         .is_inline = true,
         .content = SPAN_LIT("\0\xff\x10")},
        {.name = SPAN_LIT("b.txt"), .content_type = SPAN_LIT("text/plain")},
    };
    struct sent sent;
    struct mail_view view = sample_view();
    view.headers = headers;
    view.header_count = 5;
    view.attachments = attachments;
    view.attachment_count = 2;
    view.html = SPAN_LIT("<b>\x01\xff</b>");
    view.has_html = true;
    sent_prepare(&sent, 2, SPAN_LIT(""));
    json_t *json = written(&view, &sent.delivery, 0, 2);
    const char *s = NULL;
    const char *text = NULL;
    const char *html = NULL;
    const char *reply_to = NULL;
    const char *name = NULL;
    json_t *map = NULL;
    json_t *list = NULL;
    assert_int_equal(json_unpack(json, "{s:s, s:{s:s, s:s}, s:[{s:s, s:s}], s:o, s:o}",
                                 "senderAddress", &s, "content", "plainText", &text, "html", &html,
                                 "replyTo", "address", &reply_to, "displayName", &name, "headers",
                                 &map, "attachments", &list),
                     0);
    assert_string_equal(s, "no-reply@contoso.com");
    assert_string_equal(text, "text\r\n");
    assert_string_equal(html, "<b>\x01\xef\xbf\xbd</b>");
    assert_string_equal(reply_to, "app@contoso.com");
    assert_string_equal(name, "App");
    assert_int_equal(json_object_size(map), 4);
    assert_string_equal(json_string_value(json_object_get(map, "X-One")), "1");
    assert_string_equal(json_string_value(json_object_get(map, "Message-ID")), "<1@x>");
    assert_string_equal(json_string_value(json_object_get(map, "X-Original-From")),
                        "app@contoso.com");
    assert_int_equal(json_array_size(list), 2);
    json_t *first = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(first, "contentInBase64")), "AP8Q");
    assert_string_equal(json_string_value(json_object_get(first, "contentId")), "c1");
    assert_null(json_object_get(json_array_get(list, 1), "contentId"));
    json_decref(json);
}

/* ---- Deliveries ---- */

static int read_sample(struct span message, struct arena *arena, struct mail_view *out,
                       struct err *err)
{
    (void)arena;
    if (span_eq(message, SPAN_LIT("broken"))) {
        return err_set(err, ERR_INVAL, "It is broken.");
    }
    *out = sample_view();
    if (span_eq(message, SPAN_LIT("hidden"))) {
        out->to_count = 0;
        out->cc_count = 0;
    }
    return 0;
}

static void setup(struct fixture *f, const struct step *steps, size_t step_count)
{
    fixture_init(f, steps, step_count);
    f->conf.type = "acs";
    f->conf.access_key = KEY;
    f->conf.sender = "no-reply@contoso.com";
    fixture_open(f, read_sample);
}

static const struct step accepted = {.status = 202,
                                     .body = "{\"id\":\"x\",\"status\":\"Running\"}"};
#define DENIED                                                                                   \
    {                                                                                            \
        .status = 401,                                                                           \
        .body =                                                                                  \
            "{\"error\":{\"code\":\"Denied\",\"message\":\"Denied by the resource provider.\"}}" \
    }
#define BAD_ADDRESS                                                                                  \
    {                                                                                                \
        .status = 400,                                                                               \
        .body =                                                                                      \
            "{\"error\":{\"code\":\"BadRequest\",\"message\":\"Invalid format for email address\"}}" \
    }

static struct span request_field(const struct fixture *f, size_t index, const char *name)
{
    return https_field(span_of(f->heads[index]), name);
}

static void delivers_signed(void **state)
{
    (void)state;
    struct fixture f;
    struct sent sent;
    setup(&f, &accepted, 1);
    sent_prepare(&sent, 3, SPAN_LIT("m"));
    assert_int_equal(backend_room(f.backend), 4);
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 1);
    assert_string_equal(f.targets[0], "/emails:send?api-version=2025-09-01");
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(sent.answers[i].verdict, VERDICT_DELIVERED);
    }
    assert_int_equal(sent.starts, 1);
    assert_string_equal(sent.account, "no-reply@contoso.com");
    char id[ACS_UUID_MAX];
    acs_operation_id(&sent.delivery, 0, 3, id);
    assert_true(span_eq(request_field(&f, 0, "Operation-Id"), span_of(id)));
    /* What was sent is what was signed. */
    char hash[ACS_SIGNATURE_MAX];
    char date[64];
    char want[200];
    char signature[ACS_SIGNATURE_MAX];
    struct buf key;
    acs_content_hash(span_of(f.bodies[0]), hash);
    assert_true(span_eq(request_field(&f, 0, "x-ms-content-sha256"), span_of(hash)));
    snprintf(date, sizeof(date), "%.*s", SPAN_FMT(request_field(&f, 0, "x-ms-date")));
    buf_init(&key, 100);
    assert_int_equal(codec_base64_decode(SPAN_LIT(KEY), false, &key), 0);
    assert_int_equal(acs_sign(buf_span(&key), "POST", span_of(f.targets[0]), date,
                              request_field(&f, 0, "host"), hash, signature),
                     0);
    snprintf(want, sizeof(want),
             "HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature=%s",
             signature);
    assert_true(span_eq(request_field(&f, 0, "authorization"), span_of(want)));
    buf_release(&key);
    fixture_release(&f);
}

static void throttling_closes_the_backend(void **state)
{
    (void)state;
    static const struct step steps[] = {
        {.status = 429,
         .headers = "Retry-After: 30\r\n",
         .body = "{\"error\":{\"code\":\"TooManyRequests\",\"message\":\"PerSubscription...\"}}"}};
    struct fixture f;
    struct sent sent;
    setup(&f, steps, 1);
    sent_prepare(&sent, 2, SPAN_LIT("m"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[1].verdict, VERDICT_THROTTLED);
    assert_int_equal(sent.answers[1].scope, SCOPE_BACKEND);
    assert_int_equal(sent.answers[1].wait_ms, 30000);
    assert_int_equal(backend_room(f.backend), 0);
    sent_prepare(&sent, 2, SPAN_LIT("m"));
    assert_int_equal(backend_deliver(f.backend, &sent.delivery), ERR_FULL);
    fixture_release(&f);
}

static void a_denied_signature_is_tried_twice(void **state)
{
    (void)state;
    static const struct step once[] = {DENIED, {.status = 202}};
    static const struct step always[] = {DENIED};
    struct fixture f;
    struct sent sent;
    setup(&f, once, 2);
    sent_prepare(&sent, 1, SPAN_LIT("m"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_DELIVERED);
    assert_int_equal(f.request_count, 2);
    fixture_release(&f);

    setup(&f, always, 1);
    sent_prepare(&sent, 1, SPAN_LIT("m"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_CONFIG);
    assert_non_null(sent.answers[0].remedy);
    assert_int_equal(f.request_count, 2);
    assert_int_equal(backend_room(f.backend), 0);
    assert_string_equal(f.health, "config ");
    fixture_release(&f);
}

static void lost_answers_are_asked_for(void **state)
{
    (void)state;
    static const struct step lost[] = {{.action = HTTPS_DROP}};
    static const struct step known[] = {
        {.status = 200, .body = "{\"id\":\"x\",\"status\":\"Succeeded\"}"}};
    static const struct step unknown[] = {
        {.status = 404, .body = "{\"error\":{\"code\":\"NotFound\"}}"}, {.status = 202}};
    static const struct step failed[] = {
        {.status = 200,
         .body = "{\"id\":\"x\",\"status\":\"Failed\",\"error\":{\"code\":\"EmailDropped\"}}"}};
    struct fixture f;
    struct sent sent;
    char id[ACS_UUID_MAX];
    char want[200];
    setup(&f, lost, 1);
    sent_prepare(&sent, 3, SPAN_LIT("m"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_UNKNOWN);
    assert_int_equal(f.request_count, 1);
    fixture_release(&f);

    setup(&f, known, 1);
    sent_prepare(&sent, 3, SPAN_LIT("m"));
    sent.delivery.maybe_sent = true;
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[2].verdict, VERDICT_DELIVERED);
    assert_int_equal(f.request_count, 1);
    assert_int_equal(sent.starts, 0);
    acs_operation_id(&sent.delivery, 0, 3, id);
    snprintf(want, sizeof(want), "/emails/operations/%s?api-version=2025-09-01", id);
    assert_string_equal(f.targets[0], want);
    fixture_release(&f);

    setup(&f, unknown, 2);
    sent_prepare(&sent, 3, SPAN_LIT("m"));
    sent.delivery.maybe_sent = true;
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[2].verdict, VERDICT_DELIVERED);
    assert_int_equal(f.request_count, 2);
    assert_int_equal(sent.starts, 1);
    assert_true(span_eq(request_field(&f, 1, "Operation-Id"), span_of(id)));
    fixture_release(&f);

    setup(&f, failed, 1);
    sent_prepare(&sent, 1, SPAN_LIT("m"));
    sent.delivery.maybe_sent = true;
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_MESSAGE_PERMANENT);
    assert_non_null(strstr(sent.answers[0].text, "EmailDropped"));
    fixture_release(&f);
}

static void a_400_to_a_repeated_name_is_checked(void **state)
{
    (void)state;
    static const struct step steps[] = {
        {.status = 404},
        {.status = 400, .body = "{\"error\":{\"code\":\"BadRequest\",\"message\":\"exists\"}}"},
        {.status = 200, .body = "{\"status\":\"Running\"}"}};
    struct fixture f;
    struct sent sent;
    setup(&f, steps, 3);
    sent_prepare(&sent, 1, SPAN_LIT("m"));
    sent.delivery.maybe_sent = true;
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 3);
    assert_int_equal(sent.answers[0].verdict, VERDICT_DELIVERED);
    fixture_release(&f);
}

/* Of four, the service dislikes the third: it is found by halving and the others go. */
static void one_bad_recipient_is_found(void **state)
{
    (void)state;
    static const struct step steps[] = {
        BAD_ADDRESS,     /* 0 1 2 3 */
        {.status = 202}, /* 0 1 */
        BAD_ADDRESS,     /* 2 3 */
        BAD_ADDRESS,     /* 2 */
        {.status = 202}, /* 3 */
    };
    struct fixture f;
    struct sent sent;
    setup(&f, steps, 5);
    sent_prepare(&sent, 4, SPAN_LIT("m"));
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 5);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(sent.answers[i].verdict,
                         i == 2 ? VERDICT_RECIPIENT_PERMANENT : VERDICT_DELIVERED);
    }
    assert_int_equal(sent.starts, 1);
    fixture_release(&f);
}

static size_t request_recipients(const struct fixture *f, size_t index)
{
    json_t *json = json_loads(f->bodies[index], 0, NULL);
    assert_non_null(json);
    size_t count = address_count(json, "to") + address_count(json, "cc") +
                   address_count(json, "bcc");
    json_decref(json);
    return count;
}

static void fifty_hidden_recipients_leave_room_for_the_neutral_to(void **state)
{
    (void)state;
    struct fixture f;
    struct sent sent;
    setup(&f, &accepted, 1);
    sent_prepare(&sent, 50, SPAN_LIT("hidden"));
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 2);
    assert_int_equal(request_recipients(&f, 0), 26);
    assert_int_equal(request_recipients(&f, 1), 26);
    for (size_t i = 0; i < 50; i++) {
        assert_int_equal(sent.answers[i].verdict, VERDICT_DELIVERED);
    }
    fixture_release(&f);

    setup(&f, &accepted, 1);
    sent_prepare(&sent, 50, SPAN_LIT("visible"));
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 1);
    assert_int_equal(request_recipients(&f, 0), 50);
    fixture_release(&f);
}

/* The operation of the first half failed, for reasons of its own; nobody has sent the second. */
static void a_failed_operation_fails_its_own_recipients(void **state)
{
    (void)state;
    static const struct step steps[] = {
        {.status = 200, .body = "{\"status\":\"Failed\",\"error\":{\"code\":\"EmailDropped\"}}"},
        {.status = 404},
        {.status = 202}};
    struct fixture f;
    struct sent sent;
    setup(&f, steps, 3);
    sent_prepare(&sent, 50, SPAN_LIT("hidden"));
    sent.delivery.maybe_sent = true;
    sent_run(&f, &sent);
    assert_int_equal(f.request_count, 3);
    for (size_t i = 0; i < 50; i++) {
        assert_int_equal(sent.answers[i].verdict,
                         i < 25 ? VERDICT_MESSAGE_PERMANENT : VERDICT_DELIVERED);
    }
    fixture_release(&f);
}

static void refuses_before_sending(void **state)
{
    (void)state;
    struct fixture f;
    struct sent sent;
    setup(&f, &accepted, 1);
    sent_prepare(&sent, 1, SPAN_LIT("broken"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_MESSAGE_PERMANENT);
    assert_string_equal(sent.answers[0].text, "It is broken.");
    f.conf.message_bytes = 5;
    sent_prepare(&sent, 1, SPAN_LIT("123456"));
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_MESSAGE_PERMANENT);
    f.conf.message_bytes = 0;
    sent_prepare(&sent, 1, SPAN_LIT("m"));
    sent.start_result = ERR_STALE;
    sent_run(&f, &sent);
    assert_int_equal(sent.answers[0].verdict, VERDICT_TRANSIENT);
    assert_int_equal(f.request_count, 0);
    fixture_release(&f);
}

static void close_waits_for_its_grace_only(void **state)
{
    (void)state;
    static const struct step hang[] = {{.action = HTTPS_HANG}};
    struct fixture f;
    struct sent sent;
    setup(&f, hang, 1);
    sent_prepare(&sent, 2, SPAN_LIT("m"));
    assert_int_equal(backend_deliver(f.backend, &sent.delivery), 0);
    while (f.request_count == 0) {
        loop_run_once(f.loop);
    }
    backend_close(&f.backend, 50, fixture_on_closed, &f.closed);
    https_run_until(f.loop, &f.closed);
    assert_true(sent.done);
    assert_int_equal(sent.answers[0].verdict, VERDICT_UNKNOWN);
    fixture_release(&f);
}

static void bad_settings_are_named(void **state)
{
    (void)state;
    static const char *const endpoints[] = {"http://x", "https://x/", "https://", "x", NULL};
    const struct backend_env env = {.read_mail = read_sample};
    struct backend *backend = NULL;
    for (size_t i = 0; i < 7; i++) {
        struct err err = {.code = 0};
        struct backend_conf conf = {.name = "acs1",
                                    .type = "acs",
                                    .endpoint = i < 5 ? endpoints[i] : "https://x",
                                    .access_key = i == 5 ? "???" : KEY,
                                    .sender = i == 6 ? NULL : "a@b.c"};
        assert_int_equal(backend_open(&env, &conf, &backend, &err), ERR_INVAL);
        assert_non_null(strstr(err.text, "acs1"));
    }
}

static void rows_find_their_examples(void **state)
{
    (void)state;
    check_rows(KIND_ACS_SEND | KIND_ACS_STATUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_as_the_official_sdk),
        cmocka_unit_test(signs_sends_and_questions),
        cmocka_unit_test(operation_ids_name_the_request),
        cmocka_unit_test(places_recipients),
        cmocka_unit_test(writes_content_headers_and_attachments),
        cmocka_unit_test(delivers_signed),
        cmocka_unit_test(throttling_closes_the_backend),
        cmocka_unit_test(a_denied_signature_is_tried_twice),
        cmocka_unit_test(lost_answers_are_asked_for),
        cmocka_unit_test(a_400_to_a_repeated_name_is_checked),
        cmocka_unit_test(one_bad_recipient_is_found),
        cmocka_unit_test(fifty_hidden_recipients_leave_room_for_the_neutral_to),
        cmocka_unit_test(a_failed_operation_fails_its_own_recipients),
        cmocka_unit_test(refuses_before_sending),
        cmocka_unit_test(close_waits_for_its_grace_only),
        cmocka_unit_test(bad_settings_are_named),
        cmocka_unit_test(rows_find_their_examples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
