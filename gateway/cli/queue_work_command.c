#include "gateway/cli/queue_work_command.h"

#include "gateway/cli/status_command.h"

#include <string.h>

/* What is said is sent to the gateway as one order (POST /v1/admin/queue/VERB), again and again
 * with the cursor of the answer until the end; the answers are added up. */

#define IDS_MAX 500
#define SKIPS_MAX 100

struct work_options {
    struct cli_common common;
    const char *verb;
    const char *lane, *backend, *client, *sender, *domain, *state, *older_than, *tag;
    const char *reason, *to;
    bool all, reset, yes, dry_run;
};

static const struct {
    const char *name;
    bool wants_yes;
} verbs[] = {
    {"hold", false}, {"release", false}, {"retry", false},  {"cancel", true},
    {"move", true},  {"purge", true},    {"replay", false},
};
#define VERB_COUNT (sizeof verbs / sizeof verbs[0])

static size_t verb_index(const char *word)
{
    size_t i = 0;
    while (i < VERB_COUNT && strcmp(verbs[i].name, word) != 0) {
        i++;
    }
    return i;
}

bool queue_work_wanted(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "list") == 0 || strcmp(argv[i], "show") == 0) {
            return false;
        }
        if (verb_index(argv[i]) < VERB_COUNT) {
            return true;
        }
    }
    return false;
}

/* The order. */

static void set_text(json_t *object, const char *name, const char *value)
{
    if (value != NULL) {
        (void)json_object_set_new(object, name, json_string(value));
    }
}

static json_t *make_order(const struct work_options *o, int count, char **ids)
{
    json_t *order = json_object();
    json_t *selector = json_object();
    json_t *list = json_array();
    set_text(selector, "lane", o->lane);
    set_text(selector, "backend", o->backend);
    set_text(selector, "client", o->client);
    set_text(selector, "sender", o->sender);
    set_text(selector, "domain", o->domain);
    set_text(selector, "state", o->state);
    set_text(selector, "older_than", o->older_than);
    set_text(selector, "tag", o->tag);
    set_text(order, "reason", o->reason);
    set_text(order, "to", o->to);
    for (int i = 0; i < count; i++) {
        (void)json_array_append_new(list, json_string(ids[i]));
    }
    (void)json_object_set_new(order, "ids", list);
    (void)json_object_set_new(order, "selector", selector);
    (void)json_object_set_new(order, "all", json_boolean(o->all));
    (void)json_object_set_new(order, "reset", json_boolean(o->reset));
    return order;
}

/* Answers. */

static json_int_t number_of(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static void add_number(json_t *sums, const json_t *answer, const char *name)
{
    (void)json_object_set_new(sums, name,
                              json_integer(number_of(sums, name) + number_of(answer, name)));
}

static json_t *new_sums(const struct work_options *o, bool dry_run)
{
    json_t *matched = json_object();
    (void)json_object_set_new(matched, "messages", json_integer(0));
    (void)json_object_set_new(matched, "batches", json_integer(0));
    (void)json_object_set_new(matched, "recipients", json_object());
    json_t *sums = json_object();
    set_text(sums, "verb", o->verb);
    (void)json_object_set_new(sums, "dry_run", json_boolean(dry_run));
    (void)json_object_set_new(sums, "matched", matched);
    (void)json_object_set_new(sums, "changed", json_integer(0));
    (void)json_object_set_new(sums, "busy", json_integer(0));
    (void)json_object_set_new(sums, "skipped_count", json_integer(0));
    (void)json_object_set_new(sums, "skipped", json_array());
    return sums;
}

static void add_answer(json_t *sums, const json_t *answer)
{
    json_t *matched = json_object_get(sums, "matched");
    const json_t *more = json_object_get(answer, "matched");
    add_number(matched, more, "messages");
    add_number(matched, more, "batches");
    const char *state = NULL;
    json_t *count = NULL;
    json_object_foreach(json_object_get(more, "recipients"), state, count)
    {
        add_number(json_object_get(matched, "recipients"), json_object_get(more, "recipients"),
                   state);
    }
    add_number(sums, answer, "changed");
    add_number(sums, answer, "busy");
    add_number(sums, answer, "skipped_count");
    json_t *skipped = json_object_get(sums, "skipped");
    const json_t *skips = json_object_get(answer, "skipped");
    for (size_t i = 0; i < json_array_size(skips) && json_array_size(skipped) < SKIPS_MAX; i++) {
        (void)json_array_append(skipped, json_array_get(skips, i));
    }
}

static int send_order(const struct work_options *o, struct client *client, const json_t *order,
                      json_t **out)
{
    char path[64];
    struct buf body;
    struct err err;
    struct client_reply reply;
    (void)snprintf(path, sizeof path, "/v1/admin/queue/%s", o->verb);
    buf_init(&body, 65536);
    if (status_dump_json(order, JSON_COMPACT, &body) != ERR_OK) {
        buf_release(&body);
        return cli_fail(&cli_queue_command, CLI_USAGE, "that is too long");
    }
    const struct client_call call = {.method = "POST",
                                     .path = path,
                                     .content_type = "application/json",
                                     .body = buf_span(&body)};
    int code = CLI_DONE;
    if (client_send(client, &call, &reply, &err) != ERR_OK) {
        code = cli_fail(&cli_queue_command, CLI_UNREACHABLE, "%s", err.text);
    } else if (reply.status != 200) {
        code = client_refused(&cli_queue_command, &reply);
        code = code == CLI_DONE ? CLI_REFUSED : code;
    } else {
        struct span text = buf_span(&reply.body);
        *out = json_loadb(text.data != NULL ? text.data : "", text.len, 0, NULL);
        if (!json_is_object(*out)) {
            json_decref(*out);
            *out = NULL;
            code = cli_fail(&cli_queue_command, CLI_UNREACHABLE,
                            "the answer is not from a heave gateway");
        }
    }
    client_reply_release(&reply);
    buf_release(&body);
    return code;
}

/* From the beginning to the end, added up in `sums`. */
static int work_through(const struct work_options *o, struct client *client, json_t *order,
                        bool dry_run, json_t *sums)
{
    int code = CLI_DONE;
    bool more = true;
    (void)json_object_set_new(order, "dry_run", json_boolean(dry_run));
    (void)json_object_del(order, "cursor");
    while (more && code == CLI_DONE) {
        json_t *answer = NULL;
        code = send_order(o, client, order, &answer);
        if (code == CLI_DONE) {
            add_answer(sums, answer);
            json_t *cursor = json_object_get(answer, "next_cursor");
            more = json_is_string(cursor);
            (void)json_object_set(order, "cursor", cursor);
        }
        json_decref(answer);
    }
    return code;
}

/* Showing. */

static void print_count(json_int_t count, const char *one, const char *many)
{
    (void)printf("%lld %s", (long long)count, count == 1 ? one : many);
}

static void print_recipients_by_state(const json_t *recipients)
{
    json_int_t total = 0;
    const char *state = NULL;
    json_t *count = NULL;
    json_object_foreach((json_t *)(uintptr_t)recipients, state, count)
    {
        total += json_integer_value(count);
    }
    print_count(total, "recipient", "recipients");
    const char *between = " (";
    json_object_foreach((json_t *)(uintptr_t)recipients, state, count)
    {
        (void)printf("%s%lld %s", between, (long long)json_integer_value(count), state);
        between = ", ";
    }
    (void)printf(total > 0 ? ")" : "");
}

static void print_matched(const struct work_options *o, const json_t *matched, bool dry_run)
{
    if (number_of(matched, "messages") == 0) {
        (void)printf("%s: nothing matches\n", o->verb);
        return;
    }
    (void)printf("%s%s: ", o->verb, dry_run ? " would be for" : "");
    print_count(number_of(matched, "messages"), "message, ", "messages, ");
    print_count(number_of(matched, "batches"), "batch, ", "batches, ");
    print_recipients_by_state(json_object_get(matched, "recipients"));
    (void)printf("\n");
}

static int print_sums(const struct work_options *o, const json_t *sums)
{
    if (o->common.json) {
        return status_print_json(&cli_queue_command, sums);
    }
    const json_t *matched = json_object_get(sums, "matched");
    bool dry_run = json_is_true(json_object_get(sums, "dry_run"));
    print_matched(o, matched, dry_run);
    json_int_t busy = number_of(sums, "busy");
    bool done = !dry_run && number_of(matched, "messages") > 0;
    if (done) {
        print_count(number_of(sums, "changed"), "batch done", "batches done");
    }
    if (busy > 0) {
        (void)printf(done ? ", " : "");
        print_count(busy, "is being sent and was left alone", "are being sent and were left alone");
    }
    (void)printf(done || busy > 0 ? "\n" : "");
    const json_t *skipped = json_object_get(sums, "skipped");
    for (size_t i = 0; i < json_array_size(skipped); i++) {
        const json_t *skip = json_array_get(skipped, i);
        char batch[24] = "";
        if (json_is_integer(json_object_get(skip, "batch"))) {
            (void)snprintf(batch, sizeof batch, "/%lld", (long long)number_of(skip, "batch"));
        }
        (void)printf("skipped %s%s: %s\n", status_text(skip, "id"), batch,
                     status_text(skip, "reason"));
    }
    return cli_write(&cli_queue_command, SPAN_LIT(""));
}

/* Of ids that were named something must come; a selector may match nothing. */
static int verdict(const json_t *sums, bool by_id)
{
    if (!by_id || number_of(sums, "changed") > 0) {
        return CLI_DONE;
    }
    return number_of(sums, "busy") > 0 ? CLI_TRY_LATER : CLI_REFUSED;
}

static int run_order(const struct work_options *o, struct client *client, int count, char **ids)
{
    bool preview = o->dry_run || (verbs[verb_index(o->verb)].wants_yes && !o->yes);
    json_t *order = make_order(o, count, ids);
    json_t *sums = new_sums(o, preview);
    int code = work_through(o, client, order, preview, sums);
    if (code == CLI_DONE) {
        code = print_sums(o, sums);
    }
    if (code == CLI_DONE && preview && !o->dry_run) {
        bool some = number_of(json_object_get(sums, "matched"), "messages") > 0;
        code = some ? cli_fail(&cli_queue_command, CLI_REFUSED,
                               "nothing was done: say --yes to %s these", o->verb)
                    : CLI_REFUSED;
    } else if (code == CLI_DONE && !preview) {
        code = verdict(sums, count > 0);
    }
    json_decref(sums);
    json_decref(order);
    return code;
}

/* The command line. */

static int check_options(const struct work_options *o, int count)
{
    bool selects = o->lane != NULL || o->backend != NULL || o->client != NULL ||
                   o->sender != NULL || o->domain != NULL || o->state != NULL ||
                   o->older_than != NULL || o->tag != NULL;
    bool moves = strcmp(o->verb, "move") == 0;
    if (count == 0 && !selects && !o->all) {
        return cli_usage(&cli_queue_command, "say which: ids, a selector (--lane ...), or --all");
    }
    if (count > IDS_MAX) {
        return cli_usage(&cli_queue_command, "at most %d ids at once", IDS_MAX);
    }
    if (moves != (o->to != NULL)) {
        return cli_usage(&cli_queue_command,
                         moves ? "say where to: --to BACKEND" : "--to is only for move");
    }
    if (o->reset && strcmp(o->verb, "retry") != 0) {
        return cli_usage(&cli_queue_command, "--reset is only for retry");
    }
    return CLI_DONE;
}

static int run_verb(struct work_options *o, int count, char **words)
{
    if (count == 0 || verb_index(words[0]) == VERB_COUNT) {
        return cli_usage(&cli_queue_command,
                         "say hold, release, retry, cancel, move, purge or replay");
    }
    o->verb = words[0];
    int code = check_options(o, count - 1);
    if (code != CLI_DONE) {
        return code;
    }
    struct err err;
    struct client *client = NULL;
    if (client_open(&o->common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_queue_command, "%s", err.text);
    }
    code = run_order(o, client, count - 1, words + 1);
    client_close(&client);
    return code;
}

int queue_work_run(int argc, char **argv)
{
    enum {
        LANE = CLI_OPTION_OWN,
        BACKEND,
        CLIENT,
        SENDER,
        DOMAIN_NAME,
        STATE,
        OLDER_THAN,
        TAG,
        REASON,
        TO,
        ALL,
        RESET,
        YES,
        DRY_RUN,
    };
    static const struct option options[] = {{"lane", required_argument, NULL, LANE},
                                            {"backend", required_argument, NULL, BACKEND},
                                            {"client", required_argument, NULL, CLIENT},
                                            {"sender", required_argument, NULL, SENDER},
                                            {"domain", required_argument, NULL, DOMAIN_NAME},
                                            {"state", required_argument, NULL, STATE},
                                            {"older-than", required_argument, NULL, OLDER_THAN},
                                            {"tag", required_argument, NULL, TAG},
                                            {"reason", required_argument, NULL, REASON},
                                            {"to", required_argument, NULL, TO},
                                            {"all", no_argument, NULL, ALL},
                                            {"reset", no_argument, NULL, RESET},
                                            {"yes", no_argument, NULL, YES},
                                            {"dry-run", no_argument, NULL, DRY_RUN},
                                            CLI_COMMON_OPTIONS,
                                            {0}};
    struct work_options o = {0};
    const char **const texts[] = {&o.lane,  &o.backend,    &o.client, &o.sender, &o.domain,
                                  &o.state, &o.older_than, &o.tag,    &o.reason, &o.to};
    bool *const flags[] = {&o.all, &o.reset, &o.yes, &o.dry_run};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jhy", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_queue_command);
        }
        if (option == 'y') {
            o.yes = true;
        } else if (option >= LANE && option <= TO) {
            *texts[option - LANE] = optarg;
        } else if (option >= ALL && option <= DRY_RUN) {
            *flags[option - ALL] = true;
        } else if (!cli_common_take(&o.common, option, optarg)) {
            return cli_try_help(&cli_queue_command);
        }
    }
    return run_verb(&o, argc - optind, argv + optind);
}
