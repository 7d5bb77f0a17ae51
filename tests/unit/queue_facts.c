/* What a Redis server says, and whether the queue's promises can be kept with it; the Cluster's
 * bytes. No server. */
#include "queue/cluster.h"
#include "queue/redis_facts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define INFO_REDIS                                                                       \
    "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\r\n# Memory\r\n"      \
    "maxmemory:1048576\r\nmaxmemory_policy:noeviction\r\n# Persistence\r\nloading:0\r\n" \
    "aof_enabled:1\r\n# Replication\r\nrole:master\r\nconnected_slaves:3\r\n"            \
    "slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=0\r\n"                      \
    "slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n"                  \
    "slave10:ip=10.0.0.4,port=6379,state=online,offset=42,lag=1\r\nslave_expires_tracked_keys:0\r\n"

static struct redis_facts facts_of(const char *info)
{
    struct redis_facts facts = {.append_only = -1};
    redis_facts_info(&facts, span_of(info));
    return facts;
}

static void test_info(void **state)
{
    (void)state;
    struct redis_facts facts = facts_of(INFO_REDIS);
    assert_string_equal(facts.version_text, "7.0.15");
    assert_int_equal(facts.version, 70015);
    assert_string_equal(facts.role, "master");
    assert_int_equal(facts.replicas, 2);
    assert_int_equal(facts.append_only, 1);
    assert_false(facts.loading);
    assert_string_equal(facts.policy, "noeviction");
    assert_int_equal(facts.max_memory, 1048576);
    facts = facts_of("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n"
                     "server_mode:cluster\r\n");
    assert_string_equal(facts.mode, "cluster");
    assert_string_equal(facts.version_text, "Valkey 8.0.1");
    assert_int_equal(facts.version, 70204);
    facts = facts_of("");
    assert_int_equal(facts.version, 0);
    assert_int_equal(facts.append_only, -1);
}

struct judged {
    const char *what;
    struct redis_facts facts;
    struct queue_conf conf;
    int status;
    enum redis_wait wait;
    const char *sentence; /* in the mistake or, with status 0, in the warning; "" none */
};

#define FACTS(number, runs_as, role_is, loads, file, evicts, syncs)                     \
    {                                                                                   \
        .version = (number), .version_text = #number, .mode = runs_as, .role = role_is, \
        .loading = (loads), .append_only = (file), .policy = evicts, .fsync = syncs     \
    }

static const struct judged rows[] = {
    {"all well",
     FACTS(70015, "standalone", "master", false, 1, "noeviction", "always"),
     {0},
     0,
     REDIS_WAIT_NONE,
     ""},
    {"too old",
     FACTS(60020, "standalone", "master", false, 1, "noeviction", "always"),
     {0},
     ERR_UNSUPPORTED,
     REDIS_WAIT_NONE,
     "6.2 or newer is needed, this server is 60020"},
    {"replica",
     FACTS(70015, "standalone", "slave", false, 1, "noeviction", "always"),
     {0},
     ERR_DENIED,
     REDIS_WAIT_NONE,
     "must name the master"},
    {"loading",
     FACTS(70015, "standalone", "master", true, 1, "noeviction", "always"),
     {0},
     ERR_UNAVAILABLE,
     REDIS_WAIT_NONE,
     "loading"},
    {"eviction",
     FACTS(70015, "standalone", "master", false, 1, "allkeys-lru", "always"),
     {.durability = QUEUE_MEMORY},
     ERR_INVAL,
     REDIS_WAIT_NONE,
     "CONFIG SET maxmemory-policy noeviction"},
    {"no file",
     FACTS(70015, "standalone", "master", false, 0, "noeviction", "always"),
     {0},
     ERR_INVAL,
     REDIS_WAIT_NONE,
     "CONFIG SET appendonly yes"},
    {"no file needed",
     FACTS(70015, "standalone", "master", false, 0, "noeviction", "always"),
     {.durability = QUEUE_MEMORY},
     0,
     REDIS_WAIT_NONE,
     ""},
    {"late fsync",
     FACTS(70015, "standalone", "master", false, 1, "noeviction", "everysec"),
     {0},
     ERR_INVAL,
     REDIS_WAIT_NONE,
     "CONFIG SET appendfsync always"},
    {"late fsync, WAITAOF",
     FACTS(70200, "standalone", "master", false, 1, "noeviction", "everysec"),
     {0},
     0,
     REDIS_WAIT_AOF,
     ""},
    {"no CONFIG, WAITAOF",
     FACTS(80000, "standalone", "master", false, 1, "noeviction", ""),
     {0},
     0,
     REDIS_WAIT_AOF,
     ""},
    {"no CONFIG",
     FACTS(70015, "standalone", "master", false, 1, "noeviction", ""),
     {0},
     0,
     REDIS_WAIT_NONE,
     "asked for appendfsync;"},
    {"says nothing",
     FACTS(70015, "standalone", "master", false, -1, "", ""),
     {0},
     0,
     REDIS_WAIT_NONE,
     "maxmemory-policy and appendonly and appendfsync"},
    {"replicated",
     FACTS(70015, "standalone", "master", false, 1, "noeviction", "everysec"),
     {.durability = QUEUE_REPLICATED},
     0,
     REDIS_WAIT_REPLICA,
     ""},
    {"a Cluster's node",
     FACTS(70015, "cluster", "master", false, 1, "noeviction", "always"),
     {0},
     ERR_UNSUPPORTED,
     REDIS_WAIT_NONE,
     "cluster://"},
    {"no Cluster's node",
     FACTS(70015, "standalone", "master", false, 1, "noeviction", "always"),
     {.topology = QUEUE_CLUSTER},
     ERR_UNSUPPORTED,
     REDIS_WAIT_NONE,
     "cluster-enabled yes"},
    {"a sentinel",
     FACTS(70015, "sentinel", "master", false, 1, "noeviction", "always"),
     {0},
     ERR_UNSUPPORTED,
     REDIS_WAIT_NONE,
     "sentinel://"},
};

static void test_judge(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct judged *row = &rows[i];
        enum redis_wait wait = REDIS_WAIT_NONE;
        char warning[300] = "";
        struct err err = {0};
        int status = redis_facts_judge(&row->facts, &row->conf, &wait, warning, &err);
        const char *said = status == 0 ? warning : err.text;
        if (status != row->status || (status == 0 && wait != row->wait) ||
            strstr(said, row->sentence) == NULL || (row->sentence[0] == '\0' && said[0] != '\0')) {
            fail_msg("%s: status %d, wait %d, \"%s\"", row->what, status, (int)wait, said);
        }
    }
}

/* Whoever mends one setting must not have to come again for the next. */
static void test_all_wrong_settings(void **state)
{
    (void)state;
    static const char policy[] = "CONFIG SET maxmemory-policy noeviction";
    static const char file[] = "CONFIG SET appendonly yes";
    static const char fsync[] = "CONFIG SET appendfsync always";
    struct redis_facts facts = FACTS(70015, "standalone", "master", false, 0,
                                     "a-policy-name-of-thirty-one-byt", "everysec");
    struct queue_conf conf = {0};
    enum redis_wait wait = REDIS_WAIT_NONE;
    char warning[300] = "";
    struct err err = {0};
    assert_int_equal(redis_facts_judge(&facts, &conf, &wait, warning, &err), ERR_INVAL);
    assert_non_null(strstr(err.text, policy));
    assert_non_null(strstr(err.text, file));
    assert_non_null(strstr(err.text, fsync));
    facts.version = REDIS_VERSION_WAITAOF; /* which needs no appendfsync always */
    assert_int_equal(redis_facts_judge(&facts, &conf, &wait, warning, &err), ERR_INVAL);
    assert_non_null(strstr(err.text, policy));
    assert_non_null(strstr(err.text, file));
    assert_null(strstr(err.text, fsync));
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const for_now[] = {
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "ERR Error running script (call to f_6b): @user_script:1: OOM command not allowed when used "
        "memory > 'maxmemory'.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "ERR Error running script (call to f_6b): @user_script:1: Script killed by user with SCRIPT "
        "KILL...",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MOVED 3999 127.0.0.1:6381",
        "NOAUTH Authentication required.",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "ERR ACL failure in script: User mail has no permissions to run the 'zadd' command script: 6b",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "NOREPLICAS Not enough good replicas to write.",
    };
    for (size_t i = 0; i < sizeof(for_now) / sizeof(for_now[0]); i++) {
        assert_non_null(redis_refusal_find(span_of(for_now[i])));
    }
    assert_null(redis_refusal_find(SPAN_LIT("WRONGTYPE Operation against a key")));
    assert_null(redis_refusal_find(SPAN_LIT("")));
    assert_true(redis_refusal_find(SPAN_LIT("ASK 1 a:1"))->redirect);
    assert_true(redis_refusal_find(SPAN_LIT("READONLY x"))->reconnect);
}

static void test_slots(void **state)
{
    (void)state;
    /* From the specification, and by CLUSTER KEYSLOT of a real server. */
    assert_int_equal(cluster_slot(SPAN_LIT("123456789")), 0x31c3);
    assert_int_equal(cluster_slot(SPAN_LIT("foo")), 12182);
    assert_int_equal(cluster_slot(SPAN_LIT("{foo}.bar")), 12182);
    assert_int_equal(cluster_slot(SPAN_LIT("{h0}:k")), 13520);
    assert_int_equal(cluster_slot(SPAN_LIT("h0")), 13520);
    assert_int_not_equal(cluster_slot(SPAN_LIT("a{}{foo}")), 12182);
    assert_int_not_equal(cluster_slot(SPAN_LIT("{h0}")), cluster_slot(SPAN_LIT("{h1}")));
}

static void test_map(void **state)
{
    (void)state;
    struct redis_value node[] = {{.type = REDIS_TEXT, .text = SPAN_LIT("10.0.0.1")},
                                 {.type = REDIS_INTEGER, .integer = 7000}};
    struct redis_value same[] = {{.type = REDIS_NIL}, {.type = REDIS_INTEGER, .integer = 7001}};
    struct redis_value first[] = {{.type = REDIS_INTEGER, .integer = 0},
                                  {.type = REDIS_INTEGER, .integer = 99},
                                  {.type = REDIS_ARRAY, .items = node, .count = 2}};
    struct redis_value second[] = {{.type = REDIS_INTEGER, .integer = 200},
                                   {.type = REDIS_INTEGER, .integer = 16383},
                                   {.type = REDIS_ARRAY, .items = same, .count = 2}};
    struct redis_value ranges[] = {{.type = REDIS_ARRAY, .items = first, .count = 3},
                                   {.type = REDIS_ARRAY, .items = second, .count = 3},
                                   {.type = REDIS_TEXT, .text = SPAN_LIT("nonsense")}};
    struct redis_value map = {.type = REDIS_ARRAY, .items = ranges, .count = 3};
    struct cluster_address address;
    assert_int_equal(cluster_master(&map, 99, &address), 0);
    assert_true(span_eq(address.host, SPAN_LIT("10.0.0.1")));
    assert_int_equal(address.port, 7000);
    assert_int_equal(cluster_master(&map, 200, &address), 0);
    assert_int_equal(address.host.len, 0);
    assert_int_equal(address.port, 7001);
    assert_int_equal(cluster_master(&map, 150, &address), ERR_NOTFOUND);
    same[1].integer = 0;
    assert_int_equal(cluster_master(&map, 200, &address), ERR_NOTFOUND);
    assert_int_equal(cluster_master(&ranges[2], 1, &address), ERR_NOTFOUND);
}

static void test_redirects(void **state)
{
    (void)state;
    struct cluster_address address;
    assert_int_equal(cluster_redirect(SPAN_LIT("MOVED 3999 127.0.0.1:6381"), &address),
                     CLUSTER_MOVED);
    assert_true(span_eq(address.host, SPAN_LIT("127.0.0.1")));
    assert_int_equal(address.port, 6381);
    assert_int_equal(cluster_redirect(SPAN_LIT("ASK 1 2001:db8::1:6381"), &address), CLUSTER_ASK);
    assert_true(span_eq(address.host, SPAN_LIT("2001:db8::1")));
    assert_int_equal(cluster_redirect(SPAN_LIT("MOVED 3999 :6382"), &address), CLUSTER_MOVED);
    assert_int_equal(address.host.len, 0);
    assert_int_equal(address.port, 6382);
    static const char *const later[] = {"TRYAGAIN x",     "CLUSTERDOWN",
                                        "MOVED",          "MOVED 1",
                                        "MOVED 1 host",   "MOVED 1 host:",
                                        "MOVED 1 host:0", "MOVED 1 host:99999",
                                        "ASK 1 host:x",   ""};
    for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++) {
        assert_int_equal(cluster_redirect(span_of(later[i]), &address), CLUSTER_LATER);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_judge),
        cmocka_unit_test(test_all_wrong_settings),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_redirects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
