/* Transcripts of the SMTP client machine, for its unit tests: run whole, byte by byte, and cut at
 * every byte.
 *
 * A transcript is a list of lines: "S text" the server says, "C text" we must have said by then
 * (all of it and no more), "G n" transaction n is given, "T" TLS is up, "Q" quit. */
#ifndef HEAVE_TESTS_LIB_SMTP_RIG_H
#define HEAVE_TESTS_LIB_SMTP_RIG_H

#include "backends/smtp_client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define HELLO                                                                           \
    "S 220 mx ESMTP", "C EHLO gw.test", "S 250-mx at your service", "S 250-PIPELINING", \
        "S 250-SIZE 1000", "S 250-8BITMIME", "S 250 SMTPUTF8"

#define TRANSACTIONS_MAX 4

struct mail {
    struct smtp_transaction transaction;
    struct answer answers[BATCH_RECIPIENTS_MAX];
    struct span recipients[BATCH_RECIPIENTS_MAX];
    size_t recipient_count;
    struct span content[2];
    bool needs_8bitmime;
    bool needs_smtputf8;
    const char *from;
    unsigned starts;
    unsigned dones;
};

struct rig {
    struct smtp_client_conf conf;
    struct smtp_client *client;
    struct buf wire;   /* what we said since the last look */
    struct buf unread; /* server bytes not used yet */
    struct mail mails[TRANSACTIONS_MAX];
    unsigned ready;
    unsigned ended;
    unsigned tls_starts;
    bool start_fails;
    bool write_fails;
    unsigned congestion; /* how many more questions are answered with yes */
    size_t fed;
    size_t cut; /* server bytes after which the connection is lost */
};

static inline int rig_write(void *ctx, struct span bytes)
{
    struct rig *rig = ctx;
    return rig->write_fails ? ERR_CLOSED : buf_append(&rig->wire, bytes);
}

static inline bool rig_congested(void *ctx)
{
    struct rig *rig = ctx;
    if (rig->congestion > 0) {
        rig->congestion--;
        return true;
    }
    return false;
}

static inline void rig_on_start_tls(void *ctx)
{
    struct rig *rig = ctx;
    rig->tls_starts++;
}

static inline void rig_on_ready(void *ctx)
{
    struct rig *rig = ctx;
    rig->ready++;
}

static inline int rig_on_start(void *ctx, struct smtp_transaction *transaction)
{
    struct rig *rig = ctx;
    struct mail *mail = transaction->ctx;
    mail->starts++;
    return rig->start_fails ? ERR_STALE : 0;
}

static inline void rig_on_done(void *ctx, struct smtp_transaction *transaction)
{
    (void)ctx;
    struct mail *mail = transaction->ctx;
    mail->dones++;
}

static inline void rig_on_end(void *ctx)
{
    struct rig *rig = ctx;
    rig->ended++;
}

static const struct smtp_client_ops rig_ops = {
    .write = rig_write,
    .congested = rig_congested,
    .on_start_tls = rig_on_start_tls,
    .on_ready = rig_on_ready,
    .on_start = rig_on_start,
    .on_done = rig_on_done,
    .on_end = rig_on_end,
};

static inline void mail_init(struct mail *mail, const char *from, const char *content, size_t count,
                             const char *const *recipients)
{
    *mail = (struct mail){.from = from, .recipient_count = count};
    mail->content[0] = span_of(content);
    for (size_t i = 0; i < count; i++) {
        mail->recipients[i] = span_of(recipients[i]);
    }
}

static inline void rig_open(struct rig *rig)
{
    static const char *const one[] = {"r1@x.org"};
    static const char *const three[] = {"r1@x.org", "r2@x.org", "r3@x.org"};
    *rig = (struct rig){.conf = {.hostname = "gw.test", .kind = KIND_RELAY}, .cut = SIZE_MAX};
    mail_init(&rig->mails[0], "s@x.org", "A: 1\r\n\r\nhi\r\n", 1, one);
    mail_init(&rig->mails[1], "s@x.org", "A: 2\r\n\r\n.dot\r\n", 3, three);
    mail_init(&rig->mails[2], "", "A: 3\r\n", 1, one);
    mail_init(&rig->mails[3], "s@x.org", "A: 4\r\n", 1, one);
    buf_init(&rig->wire, 1 << 20);
    buf_init(&rig->unread, 1 << 20);
}

static inline void rig_start(struct rig *rig)
{
    rig->client = smtp_client_new(&rig->conf, &rig_ops, rig);
}

static inline void rig_close(struct rig *rig)
{
    smtp_client_lost(rig->client, "The test is over.");
    assert_int_equal(rig->ended, 1);
    assert_int_equal(smtp_client_load(rig->client), 0);
    smtp_client_free(&rig->client);
    buf_release(&rig->wire);
    buf_release(&rig->unread);
}

static inline void rig_give(struct rig *rig, size_t index)
{
    struct mail *mail = &rig->mails[index];
    mail->transaction = (struct smtp_transaction){
        .reverse_path = span_of(mail->from),
        .recipients = mail->recipients,
        .recipient_count = mail->recipient_count,
        .content = {mail->content[0], mail->content[1]},
        .needs_8bitmime = mail->needs_8bitmime,
        .needs_smtputf8 = mail->needs_smtputf8,
        .answers = mail->answers,
        .ctx = mail,
    };
    smtp_client_give(rig->client, &mail->transaction);
}

static inline void rig_feed(struct rig *rig, struct span bytes)
{
    if (rig->fed + bytes.len > rig->cut) {
        bytes.len = rig->cut - rig->fed;
    }
    rig->fed += bytes.len;
    assert_int_equal(buf_append(&rig->unread, bytes), 0);
    size_t used = smtp_client_feed(rig->client, buf_span(&rig->unread));
    buf_consume(&rig->unread, used);
}

/* Feeds `bytes` at once, or one byte at a time. */
static inline void rig_say(struct rig *rig, struct span bytes, bool bytewise)
{
    if (!bytewise) {
        rig_feed(rig, bytes);
        return;
    }
    for (size_t i = 0; i < bytes.len; i++) {
        rig_feed(rig, span_make(bytes.data + i, 1));
    }
}

/* Checks that we have said exactly the C lines from `line` on; returns the first line after them.
 */
static inline size_t expect_client(struct rig *rig, const char *const *lines, size_t line)
{
    struct buf want;
    buf_init(&want, 1 << 20);
    while (lines[line] != NULL && lines[line][0] == 'C') {
        assert_int_equal(buf_printf(&want, "%s\r\n", lines[line] + 2), 0);
        line++;
    }
    if (!span_eq(buf_span(&rig->wire), buf_span(&want))) {
        fail_msg("before line %zu we said:\n%.*s\nand should have said:\n%.*s", line,
                 SPAN_FMT(buf_span(&rig->wire)), SPAN_FMT(buf_span(&want)));
    }
    buf_reset(&rig->wire);
    buf_release(&want);
    return line;
}

static inline size_t say_server(struct rig *rig, const char *const *lines, size_t line,
                                bool bytewise)
{
    struct buf said;
    buf_init(&said, 1 << 20);
    while (lines[line] != NULL && lines[line][0] == 'S') {
        assert_int_equal(buf_printf(&said, "%s\r\n", lines[line] + 2), 0);
        line++;
    }
    rig_say(rig, buf_span(&said), bytewise);
    buf_release(&said);
    return line;
}

/* Runs until the end or the cut. */
static inline void rig_run(struct rig *rig, const char *const *lines, bool bytewise)
{
    size_t line = 0;
    while (lines[line] != NULL) {
        switch (lines[line][0]) {
        case 'S':
            line = say_server(rig, lines, line, bytewise);
            break;
        case 'G':
            if (rig->fed < rig->cut) {
                rig_give(rig, (size_t)(lines[line][2] - '0'));
            }
            line++;
            break;
        case 'T':
            smtp_client_tls_done(rig->client);
            line++;
            break;
        case 'Q':
            smtp_client_quit(rig->client);
            line++;
            break;
        default:
            break;
        }
        if (rig->fed >= rig->cut) {
            return;
        }
        line = expect_client(rig, lines, line);
    }
}

/* Both ways; `check` sees the rig after each. */
static inline void transcript(const char *const *lines, void (*set)(struct rig *rig),
                              void (*check)(struct rig *rig))
{
    for (int bytewise = 0; bytewise < 2; bytewise++) {
        struct rig rig;
        rig_open(&rig);
        if (set != NULL) {
            set(&rig);
        }
        rig_start(&rig);
        rig_run(&rig, lines, bytewise != 0);
        check(&rig);
        rig_close(&rig);
    }
}

static inline void assert_verdict(const struct mail *mail, size_t recipient, enum verdict verdict)
{
    assert_int_equal(mail->dones, 1);
    if (mail->answers[recipient].verdict != verdict) {
        fail_msg("recipient %zu: verdict %d \"%s\", not %d", recipient,
                 (int)mail->answers[recipient].verdict, mail->answers[recipient].text,
                 (int)verdict);
    }
}

#endif
