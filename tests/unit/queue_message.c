/* Stored records: what goes in comes out, and nothing that was cut or changed is taken for a
 * record. */
#include "gateway/base/codec.h"
#include "queue/queue_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct message sample_message(void)
{
    return (struct message){
        .client = SPAN_LIT("zabbix"),
        .lane = SPAN_LIT("alert"),
        .reverse_path = SPAN_LIT(""),
        .header_from = SPAN_LIT("zabbix@contoso.com"),
        .message_id = SPAN_LIT("<1@contoso.com>"),
        .subject = SPAN_LIT("Größe"),
        .source = SPAN_LIT("192.0.2.1 zabbix.contoso.com"),
        .tags = SPAN_LIT("invoice\nmarch\n"),
        .accepted_ms = 1764000000123,
        .expires_ms = 1764086400123,
        .flags = MESSAGE_8BIT | MESSAGE_SMTPUTF8,
        .body = SPAN_LIT("x"),
        .batch_count = 3,
    };
}

static void sample_batch(struct batch *batch, struct recipient *recipients, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        recipients[i] = (struct recipient){
            .address = SPAN_LIT("anna@contoso.com"),
            .state = (enum recipient_state)(i % RECIPIENT_STATE_COUNT),
            .last_reply = SPAN_LIT("550 5.1.10 no such user"),
            .at_ms = 1764000000000 + (int64_t)i,
        };
    }
    *batch = (struct batch){
        .number = 200,
        .lane = SPAN_LIT("bulk"),
        .backend = SPAN_LIT("acs"),
        .account = SPAN_LIT("noreply@contoso.com"),
        .attempts = 4,
        .epoch = 300,
        .flags = BATCH_MAYBE_SENT,
        .recipients = recipients,
        .recipient_count = count,
    };
}

static void test_message_round_trip(void **state)
{
    (void)state;
    struct message in = sample_message();
    struct message out = {0};
    uint32_t batches = 0;
    struct buf stored;
    buf_init(&stored, 4096);
    assert_int_equal(queue_message_store(&in, 7777, &stored), 0);
    assert_int_equal(queue_message_charge(buf_span(&stored)), 7777);
    assert_int_equal(queue_message_read(buf_span(&stored), &out, &batches), 0);
    assert_int_equal(batches, 3);
    assert_true(span_eq(in.client, out.client) && span_eq(in.lane, out.lane));
    assert_true(span_eq(in.reverse_path, out.reverse_path) &&
                span_eq(in.header_from, out.header_from));
    assert_true(span_eq(in.message_id, out.message_id) && span_eq(in.subject, out.subject));
    assert_int_equal(in.accepted_ms, out.accepted_ms);
    assert_int_equal(in.expires_ms, out.expires_ms);
    assert_int_equal(in.flags, out.flags);
    for (size_t len = 0; len < buf_len(&stored); len++) {
        assert_int_not_equal(
            queue_message_read(span_make(buf_span(&stored).data, len), &out, &batches), 0);
    }
    buf_release(&stored);
}

static void test_batch_round_trip(void **state)
{
    (void)state;
    static struct recipient recipients[BATCH_RECIPIENTS_MAX];
    struct batch in;
    struct batch out = {0};
    struct batch_head head = {
        .state = 'H',
        .starts = 1,
        .epoch = 7,
        .due_ms = 1764000000999,
        .pair = SPAN_LIT("bulk|acs"),
        .client = SPAN_LIT("a|b"),
        .reason = SPAN_LIT("lost\r\nanswer"),
    };
    struct batch_head read = {0};
    struct buf stored;
    struct arena arena;
    sample_batch(&in, recipients, BATCH_RECIPIENTS_MAX);
    buf_init(&stored, 65536);
    arena_init(&arena, 1 << 20);
    assert_int_equal(queue_batch_store(&head, &in, &stored), 0);
    assert_int_equal(queue_batch_read(buf_span(&stored), &arena, &read, &out), 0);
    assert_int_equal(read.state, 'H');
    assert_int_equal(read.starts, 1);
    assert_int_equal(read.epoch, 7);
    assert_int_equal(read.due_ms, 1764000000999);
    assert_true(span_eq(read.pair, head.pair) && span_eq(read.client, head.client));
    assert_true(span_eq(read.reason, SPAN_LIT("lost  answer")));
    assert_int_equal(out.number, 200);
    assert_int_equal(out.attempts, 4);
    assert_int_equal(out.epoch, 300);
    assert_int_equal(out.flags, BATCH_MAYBE_SENT);
    assert_true(span_eq(out.account, in.account));
    assert_int_equal(out.recipient_count, BATCH_RECIPIENTS_MAX);
    for (size_t i = 0; i < out.recipient_count; i++) {
        assert_true(span_eq(out.recipients[i].address, recipients[i].address));
        assert_int_equal(out.recipients[i].state, recipients[i].state);
        assert_int_equal(out.recipients[i].at_ms, recipients[i].at_ms);
    }
    assert_int_equal(batch_open_count(&out), 8);
    for (size_t len = 0; len < buf_len(&stored); len++) {
        assert_int_not_equal(
            queue_batch_read(span_make(buf_span(&stored).data, len), &arena, &read, &out), 0);
    }
    arena_release(&arena);
    buf_release(&stored);
}

static void test_limits(void **state)
{
    (void)state;
    static struct recipient recipients[BATCH_RECIPIENTS_MAX + 1];
    struct batch batch;
    struct buf stored;
    struct arena arena;
    buf_init(&stored, 65536);
    arena_init(&arena, 1 << 20);
    sample_batch(&batch, recipients, BATCH_RECIPIENTS_MAX + 1);
    assert_int_equal(batch_encode(&batch, &stored), ERR_LIMIT);
    assert_int_equal(buf_len(&stored), 0);
    /* A reply is cut to 300 bytes. */
    static char reply[1000];
    memset(reply, 'r', sizeof(reply));
    batch.recipient_count = 1;
    recipients[0].last_reply = span_make(reply, sizeof(reply));
    assert_int_equal(batch_encode(&batch, &stored), 0);
    assert_int_equal(batch_decode(buf_span(&stored), &arena, &batch), 0);
    assert_int_equal(batch.recipients[0].last_reply.len, 300);
    /* What does not fit leaves the buf as it was. */
    struct buf tight;
    buf_init(&tight, 40);
    assert_int_equal(buf_append(&tight, SPAN_LIT("keep")), 0);
    assert_int_equal(batch_encode(&batch, &tight), ERR_LIMIT);
    assert_true(span_eq(buf_span(&tight), SPAN_LIT("keep")));
    buf_release(&tight);
    buf_release(&stored);
    arena_release(&arena);
}

static void test_refuses_what_it_does_not_know(void **state)
{
    (void)state;
    struct message out = {0};
    struct batch batch = {0};
    struct arena arena;
    arena_init(&arena, 1 << 20);
    assert_int_equal(message_decode(SPAN_LIT("\x03\x00\x00"), &out), ERR_UNSUPPORTED);
    assert_int_equal(message_decode(SPAN_LIT(""), &out), ERR_INVAL);
    /* A length of 2^63 and one of eleven bytes. */
    assert_int_equal(message_decode(SPAN_LIT("\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), &out),
                     ERR_INVAL);
    assert_int_equal(
        message_decode(SPAN_LIT("\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), &out),
        ERR_INVAL);
    /* Number 0, three empty names, attempts, epoch, flags 0, then 51 recipients. */
    assert_int_equal(batch_decode(SPAN_LIT("\x01\0\0\0\0\0\0\0\x33"), &arena, &batch), ERR_LIMIT);
    /* A recipient in a state that does not exist; a byte too many at the end. */
    assert_int_equal(batch_decode(SPAN_LIT("\x01\0\0\0\0\0\0\0\x01\x00\x07\0\0"), &arena, &batch),
                     ERR_INVAL);
    assert_int_equal(batch_decode(SPAN_LIT("\x01\0\0\0\0\0\0\0\x00\0"), &arena, &batch), ERR_INVAL);
    assert_int_equal(batch_decode(SPAN_LIT("\x01\0\0\0\0\0\0\0\x00"), &arena, &batch), 0);
    arena_release(&arena);
}

/* Any change of bytes is an error or another valid record, never a read outside (ASan watches). */
static void test_changed_bytes(void **state)
{
    (void)state;
    static struct recipient recipients[4];
    struct batch batch;
    struct batch_head head = {
        .state = 'R', .pair = SPAN_LIT("bulk|acs"), .client = SPAN_LIT("erp")};
    struct buf stored;
    sample_batch(&batch, recipients, 4);
    buf_init(&stored, 65536);
    assert_int_equal(queue_batch_store(&head, &batch, &stored), 0);
    size_t len = buf_len(&stored);
    size_t refused = 0;
    for (size_t at = 0; at < len; at++) {
        for (unsigned value = 0; value < 256; value += 5) {
            char *copy = mem_dup(buf_span(&stored));
            struct arena arena;
            struct batch out = {0};
            struct batch_head read;
            arena_init(&arena, 1 << 20);
            copy[at] = (char)value;
            refused += queue_batch_read(span_make(copy, len), &arena, &read, &out) != 0 ? 1 : 0;
            arena_release(&arena);
            mem_free(copy);
        }
    }
    assert_true(refused > 0);
    buf_release(&stored);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(recipient_state_name(RECIPIENT_SUPPRESSED), "suppressed");
    assert_string_equal(batch_state_name(BATCH_DELAYED), "delayed");
    char entry[QUEUE_ENTRY_MAX];
    queue_entry(SPAN_LIT("01J-0"), 3, 2048, entry);
    assert_string_equal(entry, "01J-0/3");
    queue_entry(SPAN_LIT("01J-0"), 3, 1 << 20, entry);
    assert_string_equal(entry, "01J-0/3*1024");
    char pair[QUEUE_NAMES_MAX + 2];
    assert_int_equal(queue_pair_name(SPAN_LIT("a|b"), SPAN_LIT("c"), pair), ERR_INVAL);
    assert_int_equal(queue_pair_name(SPAN_LIT("a"), SPAN_LIT("c\n"), pair), ERR_INVAL);
    assert_int_equal(queue_pair_name(SPAN_LIT("a"), SPAN_LIT("c"), pair), 0);
    assert_string_equal(pair, "a|c");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_message_round_trip),
        cmocka_unit_test(test_batch_round_trip),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_refuses_what_it_does_not_know),
        cmocka_unit_test(test_changed_bytes),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
