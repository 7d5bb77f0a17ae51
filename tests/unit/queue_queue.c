/* The queue against a real redis-server. */
#include "tests/unit/queue_harness.h"

static struct rig *rig_of(void **state)
{
    return *state;
}

/* One message there and back, looked at on the way. */
static void test_life_of_a_message(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "zabbix", "alert", 1, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_READY);
    assert_string_equal(shown.subject, "Disk full");

    claim_wait(&handle, "alert", "hve", 10, &claimed);
    assert_int_equal(claimed.status, 0);
    assert_int_equal(claimed.count, 1);
    struct queue_lease *lease = claimed.leases[0];
    assert_true(span_eq(lease->message.id, span_of(draft.id)));
    assert_true(span_eq(lease->message.body, draft.message.body));
    assert_true(span_eq(lease->message.client, SPAN_LIT("zabbix")));
    assert_int_equal(lease->batch.recipient_count, 2);
    assert_int_equal(lease->epoch, 1);
    assert_false(lease->was_started);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_CLAIMED);

    assert_int_equal(queue_start(handle.queue, lease), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_STARTED);

    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_DONE);
    assert_int_equal(shown.states[0][0], RECIPIENT_DELIVERED);
    assert_int_equal(shown.states[0][1], RECIPIENT_DELIVERED);
    assert_string_equal(shown.last_reply, "250 2.0.0 OK");
    claim_wait(&handle, "alert", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    handle_close(&handle);
}

static int setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig_start_server(rig);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    rig_release(*state);
    mem_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life_of_a_message, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
