/* Fuzzes the SMTP machine. The first byte chooses the settings, the second how the input is cut;
 * every run is done whole and in pieces, and both must say and hand over the same. */
#include "gateway/smtp.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LOG_MAX ((size_t)64 << 20)

static void append(struct buf *out, struct span s)
{
    ASSERT(buf_append(out, s) == ERR_OK);
}

/* What keeps smuggling out: nothing handed over holds a bare CR, a bare LF or a NUL. */
static void check_message(struct span message, size_t max_bytes)
{
    ASSERT(message.len <= max_bytes);
    ASSERT(span_find(message, '\0') == message.len);
    for (size_t i = 0; i < message.len; i++) {
        if (message.data[i] == '\n') {
            ASSERT(i > 0 && message.data[i - 1] == '\r');
        }
        if (message.data[i] == '\r') {
            ASSERT(i + 1 < message.len && message.data[i + 1] == '\n');
        }
    }
}

/* The owner says no to whatever has an 'n' in front, and notes what it was asked. */
static void answer(struct smtp *m, enum smtp_event event, const struct smtp_conf *conf,
                   struct buf *log, struct buf *out)
{
    const struct smtp_transaction *t = smtp_transaction(m);
    const struct smtp_credentials *c = smtp_credentials(m);
    struct span asked = event == SMTP_EVENT_MAIL      ? t->reverse_path
                        : event == SMTP_EVENT_RCPT    ? t->candidate
                        : event == SMTP_EVENT_MESSAGE ? t->message
                        : event == SMTP_EVENT_AUTH    ? c->password
                                                      : SPAN_LIT("");
    ASSERT(t->recipient_count <= conf->max_recipients);
    if (event == SMTP_EVENT_MESSAGE) {
        check_message(t->message, conf->max_message_bytes);
        ASSERT(t->recipient_count > 0);
    }
    append(log, buf_span(out));
    buf_reset(out);
    append(log, asked);
    bool refused = span_istarts(asked, SPAN_LIT("n"));
    struct smtp_reply no = {.code = 550, .enhanced = "5.7.1", .text = asked};
    smtp_answer(m, refused ? &no : NULL, out);
}

/* Feeds `input` in pieces of `step`; what the machine leaves is shown again, as the stream does. */
static void run(const struct smtp_conf *conf, bool tls, struct span input, size_t step,
                struct buf *log)
{
    struct smtp *m = smtp_new(conf, tls);
    struct buf out;
    buf_init(&out, LOG_MAX);
    smtp_greet(m, &out);
    size_t shown = 0;
    size_t used = 0;
    enum smtp_event event = SMTP_EVENT_MORE;
    while (event != SMTP_EVENT_CLOSE && (shown < input.len || event != SMTP_EVENT_MORE)) {
        shown = input.len - shown > step ? shown + step : input.len;
        struct span rest = span_make(input.data + used, shown - used);
        while ((event = smtp_advance(m, &rest, &out)) != SMTP_EVENT_MORE &&
               event != SMTP_EVENT_CLOSE) {
            if (event == SMTP_EVENT_STARTTLS) {
                smtp_tls_started(m); /* keeping the bytes, so that cutting changes nothing */
            } else {
                answer(m, event, conf, log, &out);
            }
        }
        used = shown - rest.len;
        ASSERT(event == SMTP_EVENT_CLOSE || rest.len <= SMTP_KEEP_BYTES);
        ASSERT(smtp_held_bytes(m) <= conf->max_message_bytes + 1);
        append(log, buf_span(&out));
        buf_reset(&out);
    }
    ASSERT(smtp_counts(m)->refused <= 2 * smtp_counts(m)->commands + 2);
    append(log, span_of(smtp_end(m)));
    smtp_expire(m, &out);
    buf_release(&out);
    smtp_free(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    const struct smtp_conf conf = {
        .hostname = "gw.test",
        .offer_starttls = (data[0] & 1) != 0,
        .offer_auth = (data[0] & 2) != 0,
        .auth_without_tls = (data[0] & 4) != 0,
        .repair_line_endings = (data[0] & 8) != 0,
        .max_message_bytes = (data[0] & 16) != 0 ? 64 : 100000,
        .max_recipients = 3,
        .max_errors = 20,
        .max_idle_commands = 50,
    };
    struct span input = span_make((const char *)data + 2, size - 2);
    bool tls = (data[0] & 32) != 0;
    struct buf whole;
    struct buf pieces;
    buf_init(&whole, LOG_MAX);
    buf_init(&pieces, LOG_MAX);
    run(&conf, tls, input, SIZE_MAX, &whole);
    run(&conf, tls, input, (size_t)(data[1] % 37) + 1, &pieces);
    ASSERT(span_eq(buf_span(&whole), buf_span(&pieces)));
    buf_release(&whole);
    buf_release(&pieces);
    return 0;
}
