/* Unit tests of gateway/mime: reading real and hostile mail, composing, and both in a circle. */
#include "gateway/mime.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

struct fixture {
    struct arena arena;
    struct mail_view view;
    struct err err;
};

static int read_text(struct fixture *f, struct span message)
{
    *f = (struct fixture){.err = {.code = 0}};
    arena_init(&f->arena, (size_t)256 << 20);
    return mime_read(message, &f->arena, &f->view, &f->err);
}

static void assert_span(struct span got, const char *want)
{
    if (!span_eq(got, span_of(want))) {
        fail_msg("got \"%.*s\", want \"%s\"", SPAN_FMT(got), want);
    }
}

static struct span header_value(const struct mail_view *view, const char *name)
{
    for (size_t i = 0; i < view->header_count; i++) {
        if (span_ieq(view->headers[i].name, span_of(name))) {
            return view->headers[i].value;
        }
    }
    return span_make(NULL, 0);
}

/* ---- Reading ---- */

static void reads_header_fields_decoded(void **state)
{
    (void)state;
    struct fixture f;
    int status = read_text(
        &f, SPAN_LIT("Received: from x by y\r\n"
                     "Return-Path: <r@x>\r\n"
                     "From: =?iso-8859-1?Q?J=F6rg?= <joerg@example.com>\r\n"
                     "To: Team: a@x.org, \"B, b\" <b@x.org>;, c@b\xc3\xbc"
                     "cher.example\r\n"
                     "Cc: d@x.org\r\n"
                     "Bcc: hidden@x.org\r\n"
                     "Reply-To: answers@example.com\r\n"
                     "Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n =?utf-8?Q?_aus_K=C3=B6ln?=\r\n"
                     "Message-ID: <1@example.com>\r\n"
                     "X-Two: one\r\n two\r\n"
                     "List-Unsubscribe: <https://example.com/u?x=1>\r\n"
                     "DKIM-Signature: v=1\r\n"
                     "\r\nHello\r\n"));
    assert_int_equal(status, 0);
    assert_span(f.view.from.name, "J\xc3\xb6rg");
    assert_span(f.view.from.address, "joerg@example.com");
    assert_int_equal(f.view.to_count, 3);
    assert_span(f.view.to[0].address, "a@x.org");
    assert_span(f.view.to[1].name, "B, b");
    assert_span(f.view.to[2].address, "c@xn--bcher-kva.example");
    assert_int_equal(f.view.cc_count, 1);
    assert_span(f.view.reply_to[0].address, "answers@example.com");
    assert_span(f.view.subject, "Gr\xc3\xbc\xc3\x9f"
                                "e aus K\xc3\xb6ln");
    assert_span(f.view.message_id, "<1@example.com>");
    assert_int_equal(f.view.header_count, 2);
    assert_span(header_value(&f.view, "x-two"), "one two");
    assert_span(header_value(&f.view, "List-Unsubscribe"), "<https://example.com/u?x=1>");
    assert_true(f.view.has_text);
    assert_false(f.view.has_html);
    assert_span(f.view.text, "Hello\r\n");
    arena_release(&f.arena);
}

static void reads_charsets_to_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        const char *body;
        const char *want;
    } rows[] = {
        {"text/plain; charset=iso-8859-15", "5 \xa4", "5 \xe2\x82\xac"},
        {"text/plain; charset=windows-1252", "\x93q\x94", "\xe2\x80\x9cq\xe2\x80\x9d"},
        {"text/plain; charset=utf-8", "\xc3\xa4\xff!", "\xc3\xa4\xef\xbf\xbd!"},
        {"text/plain", "\xe4", "\xc3\xa4"},
        {"text/plain", "\xc3\xa4", "\xc3\xa4"},
        {"text/plain; charset=no-such-charset", "a\xe4", "a\xc3\xa4"},
        {"text/plain; charset=iso-2022-jp", "\x1b$B4A\x1b(B.", "\xe6\xbc\xa2."},
        {"text/plain; charset=gb2312", "\xba\xba\xff", "\xe6\xb1\x89\xef\xbf\xbd"},
        {"text/plain; charset=utf-7", "+AOQ-", "\xc3\xa4"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char message[300];
        int len = snprintf(message, sizeof(message), "From: a@b.c\r\nContent-Type: %s\r\n\r\n%s",
                           rows[i].type, rows[i].body);
        struct fixture f;
        assert_int_equal(read_text(&f, span_make(message, (size_t)len)), 0);
        assert_span(f.view.text, rows[i].want);
        arena_release(&f.arena);
    }
}

static const char nested[] =
    "From: a@b.c\r\n"
    "Content-Type: multipart/mixed; boundary=M\r\n\r\n"
    "preamble\r\n--M\r\n"
    "Content-Type: multipart/alternative; boundary=\"A A\"\r\n\r\n"
    "--A A\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
    "--A A\r\nContent-Type: multipart/related; boundary=R; start=\"<root@x>\"\r\n\r\n"
    "--R\r\nContent-Type: image/png\r\nContent-ID: <img@x>\r\n"
    "Content-Transfer-Encoding: base64\r\n\r\niVBORw==\r\n"
    "--R\r\nContent-Type: text/html\r\nContent-ID: <root@x>\r\n\r\n<img src=\"cid:img@x\">\r\n"
    "--R--\r\n"
    "--A A\r\nContent-Type: text/calendar; method=REQUEST\r\n\r\nBEGIN:VCALENDAR\r\n"
    "--A A--\r\n"
    "--M\r\nContent-Type: application/pdf\r\n"
    "Content-Disposition: attachment; filename*0*=UTF-8''Rech%C3%BC; filename*1=\"nung.pdf\"\r\n"
    "Content-Transfer-Encoding: quoted-printable\r\n\r\n=00=FF=\r\nx\r\n"
    "--M\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninner body\r\n"
    "--M\r\nContent-Type: application/ms-tnef; name=\"=?utf-8?Q?w=C3=AFnmail.dat?=\"\r\n\r\nT\r\n"
    "--M\r\nContent-Type: text/plain\r\n\r\nfooter\r\n"
    "--M--\r\n";

static void reads_nested_parts(void **state)
{
    (void)state;
    struct fixture f;
    assert_int_equal(read_text(&f, span_of(nested)), 0);
    assert_span(f.view.text, "plain");
    assert_span(f.view.html, "<img src=\"cid:img@x\">");
    assert_int_equal(f.view.attachment_count, 6);
    const struct mail_attachment *a = f.view.attachments;
    assert_span(a[0].content_type, "image/png");
    assert_span(a[0].content_id, "img@x");
    assert_true(a[0].is_inline);
    assert_int_equal(a[0].content.len, 4);
    assert_span(a[0].name, "part-1.png");
    assert_span(a[1].content_type, "text/calendar");
    assert_span(a[1].name, "part-2.ics");
    assert_false(a[1].is_inline);
    assert_span(a[2].name, "Rech\xc3\xbcnung.pdf");
    assert_true(span_eq(a[2].content, SPAN_LIT("\0\xffx")));
    assert_span(a[3].content_type, "message/rfc822");
    assert_span(a[3].name, "part-4.eml");
    assert_span(a[3].content, "Subject: inner\r\n\r\ninner body");
    assert_span(a[4].name, "w\xc3\xafnmail.dat");
    assert_span(a[4].content, "T");
    assert_span(a[5].content, "footer");
    assert_span(a[5].name, "part-6.txt");
    arena_release(&f.arena);
}

static void reads_a_whole_smime_message_as_attachment(void **state)
{
    (void)state;
    struct fixture f;
    assert_int_equal(
        read_text(&f, SPAN_LIT("From: a@b.c\r\nMIME-Version: 1.0\r\n"
                               "Content-Type: application/pkcs7-mime; smime-type=enveloped-data;"
                               " name=smime.p7m\r\nContent-Transfer-Encoding: base64\r\n"
                               "Content-Disposition: attachment; filename=smime.p7m\r\n\r\n"
                               "AAEC\r\n")),
        0);
    assert_false(f.view.has_text || f.view.has_html);
    assert_int_equal(f.view.attachment_count, 1);
    assert_span(f.view.attachments[0].name, "smime.p7m");
    assert_true(span_eq(f.view.attachments[0].content, SPAN_LIT("\0\1\2")));
    arena_release(&f.arena);
}

static void header_values_cannot_start_a_line(void **state)
{
    (void)state;
    struct fixture f;
    assert_int_equal(read_text(&f, SPAN_LIT("Subject: =?utf-8?Q?a=0D=0ABcc:_x@y?=\r\n"
                                            "X-A: =?utf-8?Q?b=0Ac?=\r\n"
                                            "From: =?utf-8?Q?n=0Am?= <a@b.c>\r\n\r\n")),
                     0);
    assert_span(f.view.subject, "a  Bcc: x@y");
    assert_span(header_value(&f.view, "X-A"), "b c");
    assert_span(f.view.from.name, "n m");
    arena_release(&f.arena);
}

static void refuses_what_is_no_message(void **state)
{
    (void)state;
    struct fixture f;
    assert_int_equal(read_text(&f, SPAN_LIT("")), ERR_INVAL);
    assert_int_not_equal(f.err.text[0], '\0');
    arena_release(&f.arena);
}

static struct span repeated(struct buf *out, const char *head, const char *piece, size_t times)
{
    buf_init(out, (size_t)64 << 20);
    assert_int_equal(buf_append(out, span_of(head)), 0);
    for (size_t i = 0; i < times; i++) {
        assert_int_equal(buf_append(out, span_of(piece)), 0);
    }
    return buf_span(out);
}

static void bounds_parts_depth_and_work(void **state)
{
    (void)state;
    static const struct {
        const char *head;
        const char *piece;
        size_t times;
        int want;
    } rows[] = {
        {"Content-Type: multipart/mixed; boundary=b\r\n\r\n", "--b\r\na:\r\n\r\nx\r\n", 900, 0},
        {"Content-Type: multipart/mixed; boundary=b\r\n\r\n", "--b\r\na:\r\n\r\nx\r\n", 1200,
         ERR_LIMIT},
        {"Content-Type: multipart/mixed; boundary=b\r\n\r\n", "--b\r\na:\r\n\r\nx\r\n", 500000,
         ERR_LIMIT},
        {"Content-Type: multipart/mixed; boundary*0=b; boundary*1=c\r\n\r\n", "--bc\r\n\r\n",
         500000, ERR_LIMIT},
        {"Content-Type: multipart/mixed; boundary=\"\\b\"\r\n\r\n", "--b\r\n\r\n", 500000,
         ERR_LIMIT},
        {"Content-Type: multipart/mixed; boundary(c)=b\r\n\r\n", "--b\r\n\r\n", 500000, ERR_LIMIT},
        {"", "Content-Type: message/rfc822\r\n\r\n", 100000, 0},
        {"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n",
         "-- a text with dashes\r\n", 500000, 0},
        {"", "X-H: v\r\n", 2000, ERR_LIMIT},
        /* Groups inside groups: GMime goes down one call for each. */
        {"To: ", "a:", 900, 0},
        {"To: ", "a:", 5000000, ERR_LIMIT},
        {"Reply-To :\r\n", " a:\r\n", 1000000, ERR_LIMIT},
        {"Content-Type: message/rfc822\r\n\r\nbcc: ", "a:", 1000000, ERR_LIMIT},
        {"Subject: x\r\n\r\ntime: ", "a:", 1000000, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct buf message;
        struct span bytes = repeated(&message, rows[i].head, rows[i].piece, rows[i].times);
        struct fixture f;
        int64_t start = clock_mono_ms();
        int status = read_text(&f, bytes);
        if (status != rows[i].want) {
            fail_msg("row %zu: %s, want %s", i, err_name(status), err_name(rows[i].want));
        }
        assert_true(clock_mono_ms() - start < 20000);
        arena_release(&f.arena);
        buf_release(&message);
    }
}

static void bounds_the_product_of_boundaries_and_lines(void **state)
{
    (void)state;
    struct buf message;
    buf_init(&message, (size_t)64 << 20);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(buf_printf(&message,
                                    "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n",
                                    i, i),
                         0);
    }
    for (int i = 0; i < 500000; i++) {
        assert_int_equal(buf_append(&message, SPAN_LIT("--x\r\n")), 0);
    }
    struct fixture f;
    assert_int_equal(read_text(&f, buf_span(&message)), ERR_LIMIT);
    arena_release(&f.arena);
    buf_release(&message);
}

static void says_so_when_the_arena_is_too_small(void **state)
{
    (void)state;
    struct fixture f = {.err = {.code = 0}};
    arena_init(&f.arena, 64);
    assert_int_equal(mime_read(span_of(nested), &f.arena, &f.view, &f.err), ERR_NOMEM);
    arena_release(&f.arena);
}

/* ---- Composing ---- */

static struct span compose(const struct mail_view *view, struct buf *out)
{
    struct err err = {.code = 0};
    buf_init(out, (size_t)64 << 20);
    int status = mime_compose(view, &(struct mime_options){.boundary = SPAN_LIT("seed")}, out,
                              &err);
    if (status != 0) {
        fail_msg("compose: %s", err.text);
    }
    struct span rest = buf_span(out);
    while (rest.len > 0) {
        size_t before = rest.len;
        struct span line = span_cut(&rest, '\n');
        assert_true(rest.len < before && line.len > 0 && line.data[line.len - 1] == '\r');
        assert_true(line.len <= 999); /* with its CR */
    }
    return buf_span(out);
}

static void composes_plain_text_byte_for_byte(void **state)
{
    (void)state;
    struct mail_address to[] = {{.address = SPAN_LIT("a@x.org"), .name = SPAN_LIT("A, \"a\"")},
                                {.address = SPAN_LIT("b@x.org")}};
    struct mail_header headers[] = {
        {.name = SPAN_LIT("List-Unsubscribe"),
         .value = SPAN_LIT(
             "<https://example.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa>, "
             "<mailto:u@example.com>")}};
    struct mail_view view = {
        .from = {.address = SPAN_LIT("me@x.org"), .name = SPAN_LIT("J\xc3\xb6rg")},
        .to = to,
        .to_count = 2,
        .subject = SPAN_LIT("Disk full\n"),
        .message_id = SPAN_LIT("<1@x.org>"),
        .headers = headers,
        .header_count = 1,
        .text = SPAN_LIT("one\ntwo\r\nthree"),
        .has_text = true,
    };
    struct buf out;
    assert_span(
        compose(&view, &out),
        "From: =?UTF-8?B?SsO2cmc=?= <me@x.org>\r\n"
        "To: \"A, \\\"a\\\"\" <a@x.org>,\r\n b@x.org\r\n"
        "Subject: Disk full\r\n"
        "Message-ID: <1@x.org>\r\n"
        "List-Unsubscribe: <https://example.com/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa>,"
        "\r\n <mailto:u@example.com>\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: 7bit\r\n\r\n"
        "one\r\ntwo\r\nthree\r\n");
    buf_release(&out);
}

static void composes_what_it_reads(void **state)
{
    (void)state;
    char long_word[1400];
    memset(long_word, 'w', sizeof(long_word));
    char binary[3000];
    for (size_t i = 0; i < sizeof(binary); i++) {
        binary[i] = (char)(i * 7);
    }
    struct mail_attachment attachments[] = {
        {.name = SPAN_LIT("logo.png"),
         .content_type = SPAN_LIT("image/png"),
         .content_id = SPAN_LIT("logo@x"),
         .is_inline = true,
         .content = {binary, sizeof(binary)}},
        {.name = SPAN_LIT(
             "Rechnung f\xc3\xbcr M\xc3\xbcller \xe2\x80\x94 ein sehr langer Name, der "
             "nicht in eine Zeile passt, und noch weiter geht \xf0\x9f\x98\x80.pdf"),
         .content_type = SPAN_LIT("application/pdf"),
         .content = SPAN_LIT("%PDF\r\n.\r\n")},
        {.name = SPAN_LIT("quote\"d\\.txt"),
         .content_type = SPAN_LIT("text/plain"),
         .content = SPAN_LIT("a\nb")},
        {.name = SPAN_LIT("in.eml"),
         .content_type = SPAN_LIT("message/rfc822"),
         .content = SPAN_LIT("Subject: s\r\n\r\nbody\r\n")},
        {.name = SPAN_LIT("in8.eml"),
         .content_type = SPAN_LIT("message/rfc822"),
         .content = SPAN_LIT("Subject: \xc3\xa4\r\n\r\nbody\r\n")},
        {.name = SPAN_LIT("empty.bin"), .content_type = SPAN_LIT("application/octet-stream")},
    };
    struct mail_header headers[] = {
        {.name = SPAN_LIT("X-Long"), .value = {long_word, sizeof(long_word)}},
        {.name = SPAN_LIT("X-Unicode"), .value = SPAN_LIT("\xe2\x82\xac und \xf0\x9f\x98\x80")},
        {.name = SPAN_LIT("Auto-Submitted"), .value = SPAN_LIT("auto-generated")},
    };
    struct mail_address cc[] = {
        {.address = SPAN_LIT("c@x.org"), .name = SPAN_LIT("C \xe6\xbc\xa2")}};
    static const char *const subjects[] = {
        "Gr\xc3\xbc\xc3\x9f"
        "e",
        "", "=?utf-8?Q?not_encoded?=",
        "a very long subject that has to be folded because it is longer than any line should be, "
        "with  two spaces and more",
        "\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2"
        "\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2"};
    static const char *const texts[] = {"plain\r\n",
                                        "trailing \r\n.\r\nFrom x\r\n",
                                        "\xc3\xa4 = \t\r\n",
                                        "\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\xe6\xbc\xa2\r\n\r\n",
                                        "",
                                        "a\fb\r\n"};
    for (unsigned shape = 0; shape < 32; shape++) {
        struct mail_view view = {
            .from = {.address = SPAN_LIT("me@x.org"), .name = SPAN_LIT("Me")},
            .cc = cc,
            .cc_count = 1,
            .subject = span_of(subjects[shape % 5]),
            .text = span_of(texts[shape % 6]),
            .html = span_of(texts[(shape + 1) % 6]),
            .has_text = (shape & 1) != 0,
            .has_html = (shape & 2) != 0,
            .attachments = (shape & 4) != 0 ? attachments : attachments + 1,
            .attachment_count = (shape & 8) != 0   ? 5
                                : (shape & 4) != 0 ? 1
                                                   : 0,
            .headers = headers,
            .header_count = (shape & 16) != 0 ? 3 : 0,
        };
        struct buf out;
        struct fixture f;
        struct span bytes = compose(&view, &out);
        assert_false(codec_has_8bit(bytes));
        assert_int_equal(read_text(&f, bytes), 0);
        const struct mail_view *got = &f.view;
        assert_true(span_eq(got->subject, view.subject));
        assert_true(span_eq(got->cc[0].name, cc[0].name));
        assert_int_equal(got->has_html, view.has_html);
        assert_int_equal(got->has_text, view.has_text || !view.has_html);
        if (view.has_text) {
            assert_true(span_eq(got->text, view.text));
        }
        if (view.has_html) {
            assert_true(span_eq(got->html, view.html));
        }
        assert_int_equal(got->attachment_count, view.attachment_count);
        for (size_t i = 0; i < view.attachment_count; i++) {
            assert_true(span_eq(got->attachments[i].name, view.attachments[i].name));
            assert_true(span_eq(got->attachments[i].content, view.attachments[i].content));
            assert_true(span_eq(got->attachments[i].content_id, view.attachments[i].content_id));
            assert_int_equal(got->attachments[i].is_inline, view.attachments[i].is_inline);
        }
        assert_int_equal(got->header_count, view.header_count);
        for (size_t i = 0; i < view.header_count; i++) {
            assert_true(span_eq(got->headers[i].value, view.headers[i].value));
        }
        arena_release(&f.arena);
        buf_release(&out);
    }
}

static void text_with_long_lines_is_quoted(void **state)
{
    (void)state;
    char *text = mem_zero(20001);
    memset(text, 'x', 20000);
    struct mail_view view = {.text = {text, 20000}, .has_text = true};
    struct buf out;
    struct fixture f;
    assert_int_equal(read_text(&f, compose(&view, &out)), 0);
    assert_int_equal(f.view.text.len, 20002);
    assert_memory_equal(f.view.text.data, text, 20000);
    arena_release(&f.arena);
    buf_release(&out);
    mem_free(text);
}

static void refuses_to_compose_what_could_break_out(void **state)
{
    (void)state;
    char long_word[1100];
    memset(long_word, 'w', sizeof(long_word));
    struct mail_header headers[] = {
        {.name = SPAN_LIT("X-A"), .value = SPAN_LIT("a\r\nBcc: x@y.z")},
        {.name = SPAN_LIT("Bcc"), .value = SPAN_LIT("x@y.z")},
        {.name = SPAN_LIT("Content-Type"), .value = SPAN_LIT("text/html")},
        {.name = SPAN_LIT("X B"), .value = SPAN_LIT("v")},
        {.name = SPAN_LIT("X:"), .value = SPAN_LIT("v")},
        {.name = SPAN_LIT(""), .value = SPAN_LIT("v")},
        {.name = SPAN_LIT("References"), .value = {long_word, sizeof(long_word)}},
        {.name = SPAN_LIT("X-A"), .value = SPAN_LIT("\xff")},
    };
    struct mail_attachment attachments[] = {
        {.content_type = SPAN_LIT("text"), .name = SPAN_LIT("n")},
        {.content_type = SPAN_LIT("text/plain\r\nX: y"), .name = SPAN_LIT("n")},
        {.content_type = SPAN_LIT("multipart/mixed"), .name = SPAN_LIT("n")},
        {.content_type = SPAN_LIT("image/png"), .content_id = SPAN_LIT("a>\r\nX: y")},
        {.content_type = SPAN_LIT("image/png"), .name = SPAN_LIT("\xff")},
    };
    struct mail_address bad[] = {{.address = SPAN_LIT("a@b.c>\r\nX: y")},
                                 {.address = SPAN_LIT("none")}};
    struct mail_view views[32] = {{.text = SPAN_LIT("\xff"), .has_text = true},
                                  {.subject = SPAN_LIT("\xff")},
                                  {.message_id = SPAN_LIT("<a b>")}};
    size_t count = 3;
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        views[count++] = (struct mail_view){.headers = &headers[i], .header_count = 1};
    }
    for (size_t i = 0; i < sizeof(attachments) / sizeof(attachments[0]); i++) {
        views[count++] = (struct mail_view){.attachments = &attachments[i], .attachment_count = 1};
    }
    for (size_t i = 0; i < 2; i++) {
        views[count++] = (struct mail_view){.to = &bad[i], .to_count = 1};
    }
    for (size_t i = 0; i < count; i++) {
        struct buf out;
        struct err err = {.code = 0};
        buf_init(&out, 100000);
        assert_int_equal(buf_append(&out, SPAN_LIT("before")), 0);
        int status = mime_compose(&views[i], &(struct mime_options){.boundary = {NULL, 0}}, &out,
                                  &err);
        if (status != ERR_INVAL || err.text[0] == '\0') {
            fail_msg("view %zu: %s %s", i, err_name(status), err.text);
        }
        assert_span(buf_span(&out), "before");
        buf_release(&out);
    }
}

static void composing_stops_at_the_limit(void **state)
{
    (void)state;
    struct mail_view view = {.text = SPAN_LIT("0123456789012345678901234567890123456789"),
                             .has_text = true};
    struct err err = {.code = 0};
    struct buf out;
    buf_init(&out, 100);
    assert_int_equal(mime_compose(&view, &(struct mime_options){.boundary = {NULL, 0}}, &out, &err),
                     ERR_LIMIT);
    assert_int_equal(buf_len(&out), 0);
    buf_release(&out);
}

/* ---- The corpus ---- */

static void load(const char *path, struct buf *out)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    buf_init(out, (size_t)64 << 20);
    char chunk[8192];
    size_t got = 0;
    char before = '\0';
    while ((got = fread(chunk, 1, sizeof(chunk), file)) > 0) {
        for (size_t i = 0; i < got; i++) {
            if (chunk[i] == '\n' && before != '\r') {
                assert_int_equal(buf_append_byte(out, '\r'), 0);
            }
            assert_int_equal(buf_append_byte(out, chunk[i]), 0);
            before = chunk[i];
        }
    }
    fclose(file);
}

static void check_view(const char *name, const struct mail_view *view, size_t size)
{
    size_t total = 0;
    for (size_t i = 0; i < view->attachment_count; i++) {
        const struct mail_attachment *a = &view->attachments[i];
        total += a->content.len;
        if (a->name.len == 0 || !codec_utf8_valid(a->name) || a->content_type.len == 0) {
            fail_msg("%s: attachment %zu has no good name or type", name, i);
        }
    }
    assert_true(total <= 2 * size + 1000);
    assert_true(codec_utf8_valid(view->text) && codec_utf8_valid(view->html));
    assert_true(codec_utf8_valid(view->subject) && codec_utf8_valid(view->from.name));
    for (size_t i = 0; i < view->header_count; i++) {
        assert_true(codec_utf8_valid(view->headers[i].value));
        assert_int_equal(span_find(view->headers[i].value, '\n'), view->headers[i].value.len);
    }
}

/* What was read can be composed, and reading that gives the same parts. */
static void check_circle(const char *name, struct mail_view *view)
{
    struct err err = {.code = 0};
    struct buf out;
    buf_init(&out, (size_t)64 << 20);
    int status = mime_compose(view, &(struct mime_options){.boundary = {NULL, 0}}, &out, &err);
    if (status == ERR_INVAL) { /* an address or identifier that is broken in the original */
        print_message("%s: read, not composed: %s\n", name, err.text);
        buf_release(&out);
        return;
    }
    assert_int_equal(status, 0);
    struct fixture f;
    assert_int_equal(read_text(&f, buf_span(&out)), 0);
    if (f.view.attachment_count != view->attachment_count) {
        fail_msg("%s: %zu attachments became %zu", name, view->attachment_count,
                 f.view.attachment_count);
    }
    for (size_t i = 0; i < view->attachment_count; i++) {
        if (!span_eq(f.view.attachments[i].content, view->attachments[i].content)) {
            fail_msg("%s: attachment %zu changed", name, i);
        }
    }
    if (!span_eq(f.view.subject, view->subject)) {
        fail_msg("%s: subject \"%.*s\" became \"%.*s\"", name, SPAN_FMT(view->subject),
                 SPAN_FMT(f.view.subject));
    }
    arena_release(&f.arena);
    buf_release(&out);
}

static void reads_the_corpus(void **state)
{
    (void)state;
    const char *folder = HEAVE_SOURCE_DIR "/../shared/corpus/msg";
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        print_message("skipped: %s is not there\n", folder);
        skip();
    }
    size_t count = 0;
    size_t refused = 0;
    struct dirent *entry = NULL;
    while ((entry = readdir(dir)) != NULL) {
        if (!span_ends(span_of(entry->d_name), SPAN_LIT(".eml"))) {
            continue;
        }
        char path[600];
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        struct buf message;
        load(path, &message);
        struct fixture f;
        int status = read_text(&f, buf_span(&message));
        if (status != 0) {
            print_message("%s: %s\n", entry->d_name, f.err.text);
            refused++;
        } else {
            check_view(entry->d_name, &f.view, buf_len(&message));
            check_circle(entry->d_name, &f.view);
        }
        arena_release(&f.arena);
        buf_release(&message);
        count++;
    }
    closedir(dir);
    print_message("%zu messages, %zu refused\n", count, refused);
    assert_true(count > 100);
    assert_true(refused * 20 < count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_header_fields_decoded),
        cmocka_unit_test(reads_charsets_to_utf8),
        cmocka_unit_test(reads_nested_parts),
        cmocka_unit_test(reads_a_whole_smime_message_as_attachment),
        cmocka_unit_test(header_values_cannot_start_a_line),
        cmocka_unit_test(refuses_what_is_no_message),
        cmocka_unit_test(bounds_parts_depth_and_work),
        cmocka_unit_test(bounds_the_product_of_boundaries_and_lines),
        cmocka_unit_test(says_so_when_the_arena_is_too_small),
        cmocka_unit_test(composes_plain_text_byte_for_byte),
        cmocka_unit_test(composes_what_it_reads),
        cmocka_unit_test(text_with_long_lines_is_quoted),
        cmocka_unit_test(refuses_to_compose_what_could_break_out),
        cmocka_unit_test(composing_stops_at_the_limit),
        cmocka_unit_test(reads_the_corpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
