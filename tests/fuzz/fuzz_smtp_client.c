/* Fuzzes backends/smtp_client: a hostile server. The first bytes choose the settings and how the
 * rest is cut. */
#include "backends/smtp_client.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAILS 6

struct mail {
    struct smtp_transaction transaction;
    struct answer answers[BATCH_RECIPIENTS_MAX];
    unsigned starts;
    unsigned dones;
};

struct fuzz {
    struct smtp_client *client;
    struct mail mails[MAILS];
    size_t given;
    bool wants_tls;
    bool start_fails;
    unsigned ends;
    uint8_t congestion;
};

static int on_write(void *ctx, struct span bytes)
{
    (void)ctx;
    ASSERT(bytes.data != NULL || bytes.len == 0);
    return 0;
}

static bool on_congested(void *ctx)
{
    struct fuzz *fuzz = ctx;
    fuzz->congestion = (uint8_t)(fuzz->congestion * 5 + 1);
    return fuzz->congestion > 200;
}

static void on_start_tls(void *ctx)
{
    struct fuzz *fuzz = ctx;
    fuzz->wants_tls = true;
}

static void on_ready(void *ctx)
{
    (void)ctx;
}

static int on_start(void *ctx, struct smtp_transaction *transaction)
{
    struct fuzz *fuzz = ctx;
    struct mail *mail = transaction->ctx;
    mail->starts++;
    ASSERT(mail->starts == 1 && mail->dones == 0);
    return fuzz->start_fails ? ERR_STALE : 0;
}

static void on_done(void *ctx, struct smtp_transaction *transaction)
{
    (void)ctx;
    struct mail *mail = transaction->ctx;
    mail->dones++;
    ASSERT(mail->dones == 1);
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        enum verdict verdict = mail->answers[i].verdict;
        ASSERT(mail->answers[i].text[0] != '\0');
        /* Nothing is delivered or in doubt that was never started. */
        ASSERT(mail->starts > 0 || (verdict != VERDICT_DELIVERED && verdict != VERDICT_UNKNOWN));
        ASSERT(!transaction->untried || mail->starts == 0);
    }
}

static void on_end(void *ctx)
{
    struct fuzz *fuzz = ctx;
    fuzz->ends++;
    ASSERT(fuzz->ends == 1);
}

static void give_all(struct fuzz *fuzz)
{
    static const struct span recipients[] = {{"a@x.org", 7}, {"b@x.org", 7}, {"c@x.org", 7}};
    while (fuzz->given < MAILS && smtp_client_room(fuzz->client) > 0) {
        struct mail *mail = &fuzz->mails[fuzz->given++];
        mail->transaction = (struct smtp_transaction){
            .reverse_path = SPAN_LIT("s@x.org"),
            .recipients = recipients,
            .recipient_count = 1 + fuzz->given % 3,
            .content = {SPAN_LIT("A: b\r\n"), SPAN_LIT("\r\n.c\r\n")},
            .needs_8bitmime = fuzz->given == 4,
            .answers = mail->answers,
            .ctx = mail,
        };
        smtp_client_give(fuzz->client, &mail->transaction);
    }
}

/* Shows the machine all bytes up to `end`; returns how many it has used in all. */
static size_t feed(struct fuzz *fuzz, struct span input, size_t used, size_t end)
{
    used += smtp_client_feed(fuzz->client, span_make(input.data + used, end - used));
    ASSERT(used <= end);
    if (fuzz->wants_tls) {
        fuzz->wants_tls = false;
        used = end;
        smtp_client_tls_done(fuzz->client);
    }
    give_all(fuzz);
    smtp_client_pump(fuzz->client);
    ASSERT(smtp_client_wait_ms(fuzz->client) >= 0);
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    struct fuzz *fuzz = mem_zero(sizeof *fuzz);
    struct smtp_client_conf conf = {
        .hostname = "gw",
        .kind = (data[0] & 1) != 0 ? KIND_HVE : KIND_RELAY,
        .starttls = (enum smtp_starttls)((data[0] >> 1) % 3),
        .user = (data[0] & 8) != 0 ? "u" : NULL,
        .password = (data[0] & 8) != 0 ? "p" : NULL,
        .prefer_login = (data[0] & 16) != 0,
    };
    fuzz->start_fails = (data[0] & 32) != 0;
    fuzz->congestion = (data[0] & 64) != 0 ? data[1] : 0;
    static const struct smtp_client_ops ops = {
        .write = on_write,
        .congested = on_congested,
        .on_start_tls = on_start_tls,
        .on_ready = on_ready,
        .on_start = on_start,
        .on_done = on_done,
        .on_end = on_end,
    };
    fuzz->client = smtp_client_new(&conf, &ops, fuzz);
    struct span input = span_make((const char *)data + 2, size - 2);
    size_t step = 1 + data[1] % 64;
    size_t used = 0;
    for (size_t end = step; used < input.len && !smtp_client_ended(fuzz->client); end += step) {
        bool last = end >= input.len;
        used = feed(fuzz, input, used, last ? input.len : end);
        if (last) {
            break;
        }
    }
    if ((data[0] & 128) != 0) {
        smtp_client_quit(fuzz->client);
    }
    smtp_client_lost(fuzz->client, "Lost.");
    ASSERT(fuzz->ends == 1);
    for (size_t i = 0; i < fuzz->given; i++) {
        ASSERT(fuzz->mails[i].dones == 1);
    }
    smtp_client_free(&fuzz->client);
    mem_free(fuzz);
    return 0;
}
