/* The SMTP machine: transcripts of tests/protocol/smtp, each run whole, byte by byte, and cut in
 * two at every byte; and what transcripts cannot say. */
#include "gateway/smtp.h"

#include "queue/fields.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define TEXT_MAX ((size_t)64 << 20)
#define CUTS_MAX ((size_t)6000)

/* ---- A transcript ---- */

/* What the client sends, and what happens when the machine has taken it. */
struct part {
    struct buf bytes;
    char action; /* 'T' TLS comes up, 'X' the deadline passes, 0 nothing */
};

#define PARTS_MAX 16
struct transcript {
    struct smtp_conf conf;
    bool tls;
    struct part parts[PARTS_MAX];
    size_t part_count;
    struct buf expected;
    const char *file;
};

static unsigned hex_digit(char c)
{
    assert_true((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'));
    return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static void append(struct buf *out, struct span s)
{
    assert_int_equal(buf_append(out, s), 0);
}

static void append_unescaped(struct buf *out, struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        char byte = s.data[i];
        if (byte == '\\') {
            i++;
            assert_true(i < s.len);
            static const char from[] = "rn0t\\";
            static const char to[] = "\r\n\0\t\\";
            const char *at = strchr(from, s.data[i]);
            if (at != NULL) {
                byte = to[at - from];
            } else {
                assert_true(s.data[i] == 'x' && i + 2 < s.len);
                byte = (char)(hex_digit(s.data[i + 1]) * 16 + hex_digit(s.data[i + 2]));
                i += 2;
            }
        }
        append(out, span_make(&byte, 1));
    }
}

static void set_option(struct transcript *t, struct span line)
{
    struct span value = line;
    struct span name = span_cut(&value, ' ');
    bool on = span_eq(value, SPAN_LIT("on"));
    uint64_t number = 0;
    if (!on) {
        assert_int_equal(span_to_u64(value, UINT32_MAX, &number), 0);
    }
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {
        {"tls", &t->tls},
        {"starttls", &t->conf.offer_starttls},
        {"auth", &t->conf.offer_auth},
        {"auth_without_tls", &t->conf.auth_without_tls},
        {"repair", &t->conf.repair_line_endings},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (span_eq(name, span_of(flags[i].name))) {
            *flags[i].flag = on;
            return;
        }
    }
    if (span_eq(name, SPAN_LIT("size"))) {
        t->conf.max_message_bytes = (size_t)number;
    } else if (span_eq(name, SPAN_LIT("recipients"))) {
        t->conf.max_recipients = (size_t)number;
    } else if (span_eq(name, SPAN_LIT("errors"))) {
        t->conf.max_errors = (uint32_t)number;
    } else {
        assert_true(span_eq(name, SPAN_LIT("commands")));
        t->conf.max_idle_commands = (uint32_t)number;
    }
}

static void repeat(struct buf *out, struct span line, const char *prefix)
{
    struct span text = line;
    uint64_t times = 0;
    assert_int_equal(span_to_u64(span_cut(&text, ' '), 1000000, &times), 0);
    for (uint64_t i = 0; i < times; i++) {
        append(out, span_of(prefix));
        append(out, text);
        append(out, SPAN_LIT("\r\n"));
    }
}

static void add_action(struct transcript *t, char action)
{
    t->parts[t->part_count - 1].action = action;
    assert_true(t->part_count < PARTS_MAX);
    buf_init(&t->parts[t->part_count++].bytes, TEXT_MAX);
}

static void read_line(struct transcript *t, struct span line)
{
    struct buf *sent = &t->parts[t->part_count - 1].bytes;
    struct span text = line.len > 3 ? span_make(line.data + 3, line.len - 3) : SPAN_LIT("");
    if (line.len == 0 || line.data[0] == '#') {
        return;
    }
    if (line.data[0] == '%') {
        set_option(t, span_make(line.data + 2, line.len - 2));
        return;
    }
    assert_true(line.len >= 2);
    if (span_starts(line, SPAN_LIT("C:"))) {
        append(sent, text);
        append(sent, SPAN_LIT("\r\n"));
    } else if (span_starts(line, SPAN_LIT("C~"))) {
        append_unescaped(sent, text);
    } else if (span_starts(line, SPAN_LIT("C*"))) {
        repeat(sent, text, "");
    } else if (span_starts(line, SPAN_LIT("S*"))) {
        repeat(&t->expected, text, "");
    } else if (span_starts(line, SPAN_LIT("S:"))) {
        append(&t->expected, text);
        append(&t->expected, SPAN_LIT("\r\n"));
    } else if (span_starts(line, SPAN_LIT("M~"))) {
        append(&t->expected, SPAN_LIT("message<"));
        append_unescaped(&t->expected, text);
        append(&t->expected, SPAN_LIT(">\r\n"));
    } else if (span_starts(line, SPAN_LIT("E:"))) {
        append(&t->expected, SPAN_LIT("end "));
        append(&t->expected, text);
        append(&t->expected, SPAN_LIT("\r\n"));
    } else {
        assert_true(line.data[0] == 'T' || line.data[0] == 'X');
        add_action(t, line.data[0]);
    }
}

static void read_transcript(struct transcript *t, const char *path)
{
    *t = (struct transcript){
        .conf = {.hostname = "gw.test",
                 .max_message_bytes = 1000000,
                 .max_recipients = 100,
                 .max_errors = 20,
                 .max_idle_commands = 1000},
        .part_count = 1,
        .file = path,
    };
    buf_init(&t->parts[0].bytes, TEXT_MAX);
    buf_init(&t->expected, TEXT_MAX);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char *line = NULL;
    size_t room = 0;
    ssize_t len = 0;
    while ((len = getline(&line, &room, file)) >= 0) {
        size_t end = len > 0 && line[len - 1] == '\n' ? (size_t)len - 1 : (size_t)len;
        read_line(t, span_make(line, end));
    }
    free(line);
    (void)fclose(file);
}

static void release_transcript(struct transcript *t)
{
    for (size_t i = 0; i < t->part_count; i++) {
        buf_release(&t->parts[i].bytes);
    }
    buf_release(&t->expected);
}

/* ---- The owner ---- */

struct run {
    struct smtp *machine;
    struct buf unread; /* what the stream would keep */
    struct buf out;
    struct buf log;
    bool closed;
};

static void answer(struct run *r, unsigned code, const char *enhanced, const char *text)
{
    struct smtp_reply reply = {.code = code, .enhanced = enhanced, .text = span_of(text)};
    smtp_answer(r->machine, code != 0 ? &reply : NULL, &r->out);
}

static void answer_message(struct run *r)
{
    const struct smtp_transaction *t = smtp_transaction(r->machine);
    append(&r->log, SPAN_LIT("message<"));
    append(&r->log, t->message);
    append(&r->log, SPAN_LIT(">\r\n"));
    if (span_starts(t->reverse_path, SPAN_LIT("full"))) {
        answer(r, 452, "4.3.1", "Full\r\n");
        return;
    }
    char text[40];
    (void)snprintf(text, sizeof text, "Ok: queued for %zu", t->recipient_count);
    answer(r, 250, "2.0.0", text);
}

static void answer_event(struct run *r, enum smtp_event event)
{
    const struct smtp_transaction *t = smtp_transaction(r->machine);
    const struct smtp_credentials *c = smtp_credentials(r->machine);
    if (event == SMTP_EVENT_MAIL && span_starts(t->reverse_path, SPAN_LIT("refused"))) {
        answer(r, 553, "5.7.1", "Not yours");
    } else if (event == SMTP_EVENT_MAIL && span_starts(t->reverse_path, SPAN_LIT("later"))) {
        answer(r, 451, "4.3.0", "Later");
    } else if (event == SMTP_EVENT_RCPT && span_starts(t->candidate, SPAN_LIT("refused"))) {
        answer(r, 550, "5.7.1", "Nobody");
    } else if (event == SMTP_EVENT_AUTH && !span_eq(c->password, SPAN_LIT("secret"))) {
        answer(r, 535, "5.7.8", "Wrong");
    } else if (event == SMTP_EVENT_MESSAGE) {
        answer_message(r);
    } else {
        answer(r, 0, NULL, NULL);
    }
}

static void take_output(struct run *r)
{
    append(&r->log, buf_span(&r->out));
    buf_reset(&r->out);
}

static void note_end(struct run *r)
{
    if (!r->closed) {
        r->closed = true;
        append(&r->log, SPAN_LIT("end "));
        append(&r->log, span_of(smtp_end(r->machine)));
        append(&r->log, SPAN_LIT("\r\n"));
    }
}

static void feed(struct run *r, struct span bytes)
{
    append(&r->unread, bytes);
    for (;;) {
        /* A copy of its own size, so that a sanitizer sees a byte read beyond. */
        struct span kept = buf_span(&r->unread);
        char *copy = mem_alloc(kept.len);
        if (kept.len > 0) {
            memcpy(copy, kept.data, kept.len);
        }
        struct span rest = span_make(copy, kept.len);
        enum smtp_event event = smtp_advance(r->machine, &rest, &r->out);
        take_output(r);
        if (event != SMTP_EVENT_MORE && event != SMTP_EVENT_STARTTLS && event != SMTP_EVENT_CLOSE) {
            /* Asked again, it says the same and takes nothing. */
            size_t left = rest.len;
            assert_int_equal(smtp_advance(r->machine, &rest, &r->out), event);
            assert_int_equal(rest.len, left);
            answer_event(r, event);
            take_output(r);
        }
        buf_consume(&r->unread, kept.len - rest.len);
        mem_free(copy);
        if (event == SMTP_EVENT_CLOSE) {
            note_end(r);
        }
        if (event == SMTP_EVENT_MORE) {
            assert_true(buf_len(&r->unread) <= SMTP_KEEP_BYTES);
        }
        if (event == SMTP_EVENT_MORE || event == SMTP_EVENT_STARTTLS || event == SMTP_EVENT_CLOSE) {
            return;
        }
    }
}

static void act(struct run *r, char action)
{
    if (action == 'T') {
        struct span nothing = SPAN_LIT("");
        assert_int_equal(smtp_advance(r->machine, &nothing, &r->out), SMTP_EVENT_STARTTLS);
        buf_reset(&r->unread); /* as the header says */
        smtp_tls_started(r->machine);
    } else if (action == 'X') {
        smtp_expire(r->machine, &r->out);
        take_output(r);
        note_end(r);
    }
}

/* Runs the transcript with its input in pieces of `step` bytes, the first of `first` (0: none). */
static void run_pieces(const struct transcript *t, size_t first, size_t step)
{
    struct run r = {.machine = smtp_new(&t->conf, t->tls)};
    buf_init(&r.unread, TEXT_MAX);
    buf_init(&r.out, SMTP_OUT_MAX);
    buf_init(&r.log, TEXT_MAX);
    smtp_greet(r.machine, &r.out);
    take_output(&r);
    size_t before = 0;
    for (size_t i = 0; i < t->part_count; i++) {
        struct span rest = buf_span(&t->parts[i].bytes);
        size_t size = first > before && first - before < rest.len ? first - before : step;
        before += rest.len;
        while (rest.len > 0) {
            size_t now = size < rest.len ? size : rest.len;
            feed(&r, span_make(rest.data, now));
            rest = span_make(rest.data + now, rest.len - now);
            size = step;
        }
        act(&r, t->parts[i].action);
    }
    if (!span_eq(buf_span(&r.log), buf_span(&t->expected))) {
        print_error("%s: first %zu, step %zu\n--- expected\n%.*s--- got\n%.*s", t->file, first,
                    step, SPAN_FMT(buf_span(&t->expected)), SPAN_FMT(buf_span(&r.log)));
        fail();
    }
    buf_release(&r.unread);
    buf_release(&r.out);
    buf_release(&r.log);
    smtp_free(&r.machine);
}

static void run_transcript(const char *path)
{
    struct transcript t;
    read_transcript(&t, path);
    size_t total = 0;
    for (size_t i = 0; i < t.part_count; i++) {
        total += buf_len(&t.parts[i].bytes);
    }
    run_pieces(&t, 0, SIZE_MAX);
    run_pieces(&t, 0, 1);
    run_pieces(&t, 0, 2);
    run_pieces(&t, 0, 3);
    /* A long one is cut at bytes spread evenly: what it repeats is the same at each place. */
    size_t stride = total / CUTS_MAX + 1;
    for (size_t cut = 1; cut < total && total <= CUTS_MAX; cut++) {
        run_pieces(&t, cut, SIZE_MAX);
    }
    for (size_t cut = 1; cut < total && total > CUTS_MAX; cut += stride * 37) {
        run_pieces(&t, cut, SIZE_MAX);
    }
    release_transcript(&t);
}

static int is_transcript(const struct dirent *entry)
{
    return span_ends(span_of(entry->d_name), SPAN_LIT(".txt"));
}

static void transcripts(void **state)
{
    (void)state;
    struct dirent **list = NULL;
    int count = scandir(HEAVE_SOURCE_DIR "/tests/protocol/smtp", &list, is_transcript, alphasort);
    assert_true(count >= 10);
    for (int i = 0; i < count; i++) {
        char path[1000];
        (void)snprintf(path, sizeof path, "%s/tests/protocol/smtp/%s", HEAVE_SOURCE_DIR,
                       list[i]->d_name);
        run_transcript(path);
        free(list[i]);
    }
    free(list);
}

/* ---- What transcripts cannot say ---- */

static const struct smtp_conf plain_conf = {
    .hostname = "gw.test",
    .offer_starttls = true,
    .offer_auth = true,
    .max_message_bytes = 1000,
    .max_recipients = 10,
    .max_errors = 20,
    .max_idle_commands = 100,
};

/* Feeds text and answers yes until the machine wants more or waits for `stop`. */
static enum smtp_event drive(struct smtp *m, const char *text, enum smtp_event stop,
                             struct buf *out)
{
    struct span bytes = span_of(text);
    for (;;) {
        enum smtp_event event = smtp_advance(m, &bytes, out);
        if (event == SMTP_EVENT_MORE || event == SMTP_EVENT_CLOSE || event == SMTP_EVENT_STARTTLS ||
            event == stop) {
            return event;
        }
        smtp_answer(m, NULL, out);
    }
}

#define ENVELOPE "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"

static void the_machine_waits_for_the_verdict(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, SMTP_OUT_MAX);
    struct smtp *m = smtp_new(&plain_conf, false);
    struct span bytes = SPAN_LIT("EHLO x\r\n" ENVELOPE "hi\r\n.\r\nNOOP\r\n");
    enum smtp_event event = SMTP_EVENT_MORE;
    while ((event = smtp_advance(m, &bytes, &out)) != SMTP_EVENT_MESSAGE) {
        assert_int_not_equal(event, SMTP_EVENT_MORE);
        smtp_answer(m, NULL, &out);
    }
    assert_true(span_eq(bytes, SPAN_LIT("NOOP\r\n")));
    assert_true(span_ends(buf_span(&out), SPAN_LIT("354 End data with <CR><LF>.<CR><LF>\r\n")));
    assert_false(smtp_is_idle(m));
    assert_true(smtp_held_bytes(m) > 0);
    buf_reset(&out);
    smtp_answer(m, NULL, &out);
    assert_true(smtp_is_idle(m));
    assert_int_equal(smtp_held_bytes(m), 0);
    assert_int_equal(smtp_counts(m)->messages, 1);
    assert_int_equal(smtp_advance(m, &bytes, &out), SMTP_EVENT_MORE);
    assert_true(span_eq(buf_span(&out), SPAN_LIT("250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n")));
    smtp_free(&m);
    buf_release(&out);
}

static void received_names_follow_rfc_3848(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, SMTP_OUT_MAX);
    struct smtp *m = smtp_new(&plain_conf, false);
    assert_int_equal(drive(m, "HELO printer one\r\n", SMTP_EVENT_MORE, &out), SMTP_EVENT_MORE);
    assert_string_equal(smtp_with(m), "SMTP");
    assert_true(span_eq(smtp_helo(m), SPAN_LIT("printer?one")));
    (void)drive(m, "EHLO x\r\n", SMTP_EVENT_MORE, &out);
    assert_string_equal(smtp_with(m), "ESMTP");
    assert_int_equal(drive(m, "STARTTLS\r\n", SMTP_EVENT_MORE, &out), SMTP_EVENT_STARTTLS);
    smtp_tls_started(m);
    assert_int_equal(smtp_helo(m).len, 0);
    (void)drive(m, "EHLO x\r\n", SMTP_EVENT_MORE, &out);
    assert_string_equal(smtp_with(m), "ESMTPS");
    (void)drive(m, "AUTH PLAIN AGEAYg==\r\n", SMTP_EVENT_MORE, &out);
    assert_string_equal(smtp_with(m), "ESMTPSA");
    (void)drive(m, "MAIL FROM:<a@b.test> SMTPUTF8\r\n", SMTP_EVENT_MORE, &out);
    assert_string_equal(smtp_with(m), "UTF8SMTPSA");
    smtp_free(&m);
    buf_release(&out);
}

static void the_password_can_be_forgotten(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, SMTP_OUT_MAX);
    struct smtp *m = smtp_new(&plain_conf, true);
    (void)drive(m, "EHLO x\r\n", SMTP_EVENT_MORE, &out);
    assert_int_equal(drive(m, "AUTH PLAIN AHVzZXIAcGFzcw==\r\n", SMTP_EVENT_AUTH, &out),
                     SMTP_EVENT_AUTH);
    const struct smtp_credentials *c = smtp_credentials(m);
    assert_string_equal(c->mechanism, "PLAIN");
    assert_true(span_eq(c->user, SPAN_LIT("user")));
    assert_true(span_eq(c->password, SPAN_LIT("pass")));
    smtp_forget_password(m);
    assert_int_equal(c->password.len, 0);
    assert_true(span_eq(c->user, SPAN_LIT("user")));
    smtp_answer(m, NULL, &out);
    assert_int_equal(c->user.len, 0);
    smtp_free(&m);
    buf_release(&out);
}

static void the_owner_can_refuse_inside_data(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, SMTP_OUT_MAX);
    struct smtp *m = smtp_new(&plain_conf, false);
    (void)drive(m, "EHLO x\r\n" ENVELOPE "some\r\nmore", SMTP_EVENT_MESSAGE, &out);
    assert_true(smtp_in_data(m));
    assert_true(smtp_held_bytes(m) > 0);
    smtp_refuse_data(m, &(struct smtp_reply){452, "4.3.1", SPAN_LIT("No room")});
    assert_int_equal(smtp_held_bytes(m), 0);
    buf_reset(&out);
    assert_int_equal(drive(m, "\r\n.\r\n", SMTP_EVENT_MESSAGE, &out), SMTP_EVENT_MORE);
    assert_true(span_eq(buf_span(&out), SPAN_LIT("452 4.3.1 No room\r\n")));
    assert_true(smtp_is_idle(m));
    smtp_free(&m);
    buf_release(&out);
}

/* A peer that never ends a refused message is not read for ever. */
static void a_refused_message_has_an_end(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, SMTP_OUT_MAX);
    struct smtp *m = smtp_new(&plain_conf, false);
    (void)drive(m, "EHLO x\r\n" ENVELOPE, SMTP_EVENT_MESSAGE, &out);
    static char chunk[4096];
    memset(chunk, 'a', sizeof chunk);
    buf_reset(&out);
    size_t chunks = 0;
    enum smtp_event event = SMTP_EVENT_MORE;
    while (event == SMTP_EVENT_MORE && chunks < 1000) {
        struct span bytes = span_make(chunk, sizeof chunk);
        event = smtp_advance(m, &bytes, &out);
        chunks++;
        assert_true(smtp_held_bytes(m) <= 1001);
    }
    assert_int_equal(event, SMTP_EVENT_CLOSE);
    assert_true(chunks < 300);
    assert_true(span_starts(buf_span(&out), SPAN_LIT("552 5.3.4 ")));
    assert_string_equal(smtp_end(m), "too_large");
    smtp_free(&m);
    buf_release(&out);
}

static void sloppy_ends_are_noticed(void **state)
{
    (void)state;
    static const char *const ends[] = {"a\n.\n", "a\n.\r\n", "a\r\n.\n", ".\n"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        struct buf out;
        buf_init(&out, SMTP_OUT_MAX);
        struct smtp *m = smtp_new(&plain_conf, false);
        (void)drive(m, "EHLO x\r\n" ENVELOPE, SMTP_EVENT_MESSAGE, &out);
        assert_false(smtp_peer_waits(m));
        assert_int_equal(drive(m, ends[i], SMTP_EVENT_MESSAGE, &out), SMTP_EVENT_MORE);
        assert_true(smtp_peer_waits(m));
        buf_reset(&out);
        smtp_expire(m, &out);
        assert_true(span_starts(buf_span(&out), SPAN_LIT("550 5.6.11 ")));
        smtp_free(&m);
        buf_release(&out);
    }
}

static void full_output_closes(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 30);
    struct smtp *m = smtp_new(&plain_conf, false);
    assert_int_equal(drive(m, "NOOP\r\nNOOP\r\nNOOP\r\n", SMTP_EVENT_MORE, &out), SMTP_EVENT_CLOSE);
    assert_string_equal(smtp_end(m), "output");
    smtp_free(&m);
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transcripts),
        cmocka_unit_test(the_machine_waits_for_the_verdict),
        cmocka_unit_test(received_names_follow_rfc_3848),
        cmocka_unit_test(the_password_can_be_forgotten),
        cmocka_unit_test(the_owner_can_refuse_inside_data),
        cmocka_unit_test(a_refused_message_has_an_end),
        cmocka_unit_test(sloppy_ends_are_noticed),
        cmocka_unit_test(full_output_closes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
