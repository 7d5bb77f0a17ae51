#include "queue/redis_facts.h"

#include <stdarg.h>
#include <stdio.h>

/* The value of `name` in the "name:value" lines of INFO; empty when it is not there. */
static struct span info_value(struct span info, const char *name)
{
    while (info.len > 0) {
        struct span line = span_trim(span_cut(&info, '\n'));
        struct span key = span_cut(&line, ':');
        if (span_eq(key, span_of(name))) {
            return line;
        }
    }
    return (struct span){0};
}

static int parse_version(struct span text)
{
    int version = 0;
    for (int part = 0; part < 3; part++) {
        uint64_t number = 0;
        if (span_to_u64(span_cut(&text, '.'), 99, &number) != 0) {
            number = 0;
        }
        version = version * 100 + (int)number;
    }
    return version;
}

static void keep(char *out, size_t out_bytes, struct span value)
{
    (void)snprintf(out, out_bytes, "%.*s", SPAN_FMT(value));
}

/* "slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=0" */
uint32_t redis_facts_replicas(struct span info)
{
    uint32_t count = 0;
    while (info.len > 0) {
        struct span line = span_trim(span_cut(&info, '\n'));
        struct span key = span_cut(&line, ':');
        uint64_t number = 0;
        if (span_starts(key, SPAN_LIT("slave")) &&
            span_to_u64(span_make(key.data + 5, key.len - 5), UINT32_MAX, &number) == 0 &&
            span_search(line, SPAN_LIT("state=online")) < line.len) {
            count++;
        }
    }
    return count;
}

void redis_facts_info(struct redis_facts *facts, struct span info)
{
    struct span version = info_value(info, "redis_version");
    struct span valkey = info_value(info, "valkey_version");
    struct span append_only = info_value(info, "aof_enabled");
    facts->version = parse_version(version);
    (void)snprintf(facts->version_text, sizeof(facts->version_text), "%s%.*s",
                   valkey.len > 0 ? "Valkey " : "", SPAN_FMT(valkey.len > 0 ? valkey : version));
    struct span mode = info_value(info, "redis_mode");
    keep(facts->mode, sizeof(facts->mode), mode.len > 0 ? mode : info_value(info, "server_mode"));
    keep(facts->role, sizeof(facts->role), info_value(info, "role"));
    facts->replicas = redis_facts_replicas(info);
    facts->loading = span_eq(info_value(info, "loading"), SPAN_LIT("1"));
    facts->append_only = append_only.len == 0 ? -1 : span_eq(append_only, SPAN_LIT("1"));
    keep(facts->policy, sizeof(facts->policy), info_value(info, "maxmemory_policy"));
    if (span_to_u64(info_value(info, "maxmemory"), UINT64_MAX, &facts->max_memory) != 0) {
        facts->max_memory = 0;
    }
}

static int judge_server(const struct redis_facts *facts, const struct queue_conf *conf,
                        struct err *err)
{
    if (facts->version < REDIS_VERSION_NEEDED) {
        return err_set(err, ERR_UNSUPPORTED, "Redis 6.2 or newer is needed, this server is %s.",
                       facts->version_text);
    }
    bool is_cluster = strcmp(facts->mode, "cluster") == 0;
    if (conf->topology == QUEUE_CLUSTER && !is_cluster && facts->mode[0] != '\0') {
        return err_set(
            err, ERR_UNSUPPORTED,
            "This Redis server is not part of a Cluster. Say redis:// in queue.redis, or "
            "start the server with cluster-enabled yes.");
    }
    if (conf->topology != QUEUE_CLUSTER && is_cluster) {
        return err_set(err, ERR_UNSUPPORTED,
                       "This Redis server is part of a Cluster. Say cluster:// in queue.redis.");
    }
    if (strcmp(facts->mode, "sentinel") == 0) {
        return err_set(
            err, ERR_UNSUPPORTED,
            "This is a sentinel, which keeps no messages. Say sentinel://HOSTS/MASTER in "
            "queue.redis.");
    }
    if (facts->loading) {
        return err_set(err, ERR_UNAVAILABLE, "Redis is still loading its data.");
    }
    if (facts->role[0] != '\0' && strcmp(facts->role, "master") != 0) {
        return err_set(
            err, ERR_DENIED,
            "This Redis server is a replica (role:%s); queue.redis must name the master.",
            facts->role);
    }
    return 0;
}

/* What is wrong with the settings, one sentence behind the other. */
struct faults {
    char text[460]; /* each sentence but the last ends in "; " */
    size_t len;
};

static void fault(struct faults *faults, const char *format, ...) PRINTF_LIKE(2, 3);
static void fault(struct faults *faults, const char *format, ...)
{
    size_t room = sizeof(faults->text) - faults->len;
    va_list args;
    va_start(args, format);
    int len = snprintf(faults->text + faults->len, room, "%s", faults->len > 0 ? "; " : "");
    faults->len += (size_t)len;
    len = vsnprintf(faults->text + faults->len, room - (size_t)len, format, args);
    va_end(args);
    faults->len += (size_t)len;
    ASSERT(faults->len < sizeof(faults->text)); /* the words of a setting are at most 31 bytes */
}

static void judge_policy(const struct redis_facts *facts, struct faults *faults)
{
    if (facts->policy[0] != '\0' && strcmp(facts->policy, "noeviction") != 0) {
        fault(faults,
              "Redis may throw accepted messages away (maxmemory-policy is %s). "
              "Say: CONFIG SET maxmemory-policy noeviction",
              facts->policy);
    }
}

/* At `fsync`: by the server itself before each answer, or by WAITAOF after each group. */
static void judge_fsync(const struct redis_facts *facts, enum redis_wait *out_wait,
                        struct faults *faults)
{
    bool always = strcmp(facts->fsync, "always") == 0;
    bool has_wait = facts->version >= REDIS_VERSION_WAITAOF && facts->append_only >= 0;
    if (facts->append_only == 0) {
        fault(faults, "Redis keeps no append-only file, so queue.durability: fsync cannot be "
                      "promised. Say: CONFIG SET appendonly yes");
    }
    if (!always && has_wait) {
        *out_wait = REDIS_WAIT_AOF;
    } else if (!always && facts->fsync[0] != '\0') {
        fault(faults,
              "Redis answers before its append-only file is on disk (appendfsync is %s), "
              "which queue.durability: fsync forbids. Say: CONFIG SET appendfsync always",
              facts->fsync);
    }
}

static int judge_settings(const struct redis_facts *facts, bool fsync_wanted,
                          enum redis_wait *out_wait, struct err *err)
{
    struct faults faults = {0};
    judge_policy(facts, &faults);
    if (fsync_wanted) {
        judge_fsync(facts, out_wait, &faults);
    }
    return faults.len > 0 ? err_set(err, ERR_INVAL, "%s", faults.text) : 0;
}

int redis_facts_judge(const struct redis_facts *facts, const struct queue_conf *conf,
                      enum redis_wait *out_wait, char warning[300], struct err *err)
{
    enum redis_wait wait = REDIS_WAIT_NONE;
    bool fsync_wanted = conf->durability == QUEUE_FSYNC;
    int status = judge_server(facts, conf, err);
    status = status != 0 ? status : judge_settings(facts, fsync_wanted, &wait, err);
    if (status != 0) {
        return status;
    }
    if (conf->durability == QUEUE_REPLICATED) {
        wait = REDIS_WAIT_REPLICA;
    }
    bool no_policy = facts->policy[0] == '\0';
    bool no_fsync = fsync_wanted && wait == REDIS_WAIT_NONE && facts->fsync[0] == '\0';
    bool no_file = fsync_wanted && facts->append_only < 0;
    warning[0] = '\0';
    if (no_policy || no_fsync || no_file) {
        (void)snprintf(warning, 300,
                       "Redis does not let itself be asked for %s%s%s; it is believed to be set as "
                       "queue.durability needs it.",
                       no_policy ? "maxmemory-policy" : "",
                       no_policy && (no_fsync || no_file) ? " and " : "",
                       no_file    ? "appendonly and appendfsync"
                       : no_fsync ? "appendfsync"
                                  : "");
    }
    *out_wait = wait;
    return 0;
}

/* Error replies. */

static const struct redis_refusal refusals[] = {
    /* First: their words are followed by a name, which may be anything. */
    {.prefix = "MOVED", .redirect = true},
    {.prefix = "ASK", .redirect = true},
    {.prefix = "TRYAGAIN", .redirect = true},
    {.prefix = "LOADING", .reconnect = true, .advice = "It is reading its data from disk."},
    {.prefix = "READONLY",
     .anywhere = true,
     .reconnect = true,
     .advice = "It became a replica; the master is looked for."},
    {.prefix = "OOM",
     .advice =
         "Its memory is full (CONFIG SET maxmemory raises the limit); new messages are put off "
         "until delivery makes room."},
    {.prefix = "OOM command not allowed",
     .anywhere = true,
     .advice =
         "Its memory is full (CONFIG SET maxmemory raises the limit); new messages are put off "
         "until delivery makes room."},
    {.prefix = "MISCONF",
     .anywhere = true,
     .advice =
         "It cannot write to its disk; its own log says why. It takes writes again when that is "
         "mended."},
    {.prefix = "BUSY",
     .advice = "Somebody's script has been running for long; SCRIPT KILL ends it."},
    {.prefix = "Script killed by user", .anywhere = true},
    {.prefix = "NOSCRIPT"},
    {.prefix = "CLUSTERDOWN",
     .anywhere = true,
     .redirect = true,
     .advice = "A part of the Cluster has no master."},
    {.prefix = "NOAUTH",
     .reconnect = true,
     .advice = "It wants a login; queue.user and queue.password give it."},
    {.prefix = "WRONGPASS", .reconnect = true},
    {.prefix = "NOPERM",
     .anywhere = true,
     .advice = "The ACL user lacks a right; queue/README.md has the rule it needs."},
    {.prefix = "ACL failure",
     .anywhere = true,
     .advice = "The ACL user lacks a right; queue/README.md has the rule it needs."},
    {.prefix = "can't run this command",
     .anywhere = true,
     .advice = "The ACL user lacks a right; queue/README.md has the rule it needs."},
    {.prefix = "can't access at least one of the keys",
     .anywhere = true,
     .advice = "The ACL user lacks a right; queue/README.md has the rule it needs."},
    {.prefix = "MASTERDOWN", .reconnect = true, .advice = "It is a replica without a master."},
    {.prefix = "NOREPLICAS",
     .anywhere = true,
     .advice = "It has fewer good replicas than its min-replicas-to-write."},
};

const struct redis_refusal *redis_refusal_find(struct span text)
{
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        struct span prefix = span_of(refusals[i].prefix);
        if (refusals[i].anywhere ? span_search(text, prefix) < text.len
                                 : span_starts(text, prefix)) {
            return &refusals[i];
        }
    }
    return NULL;
}
