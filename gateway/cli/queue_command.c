#include "gateway/cli/pages.h"
#include "gateway/cli/queue_work_command.h"

#include <string.h>

/* `heave queue list` and `heave queue show`: depth per lane and backend, and the messages behind
 * it. */

#define LIMIT_DEFAULT 50

struct queue_options {
    struct cli_common common;
    const char *lane;
    const char *backend;
    const char *client, *state, *sender, *domain, *tag, *older_than;
    struct pages pages;
    bool all;  /* finished messages too */
    bool dead; /* dead letters */
};

static bool row_wanted(const struct queue_options *o, const json_t *row)
{
    return (o->lane == NULL || strcmp(status_text(row, "lane"), o->lane) == 0) &&
           (o->backend == NULL || strcmp(status_text(row, "backend"), o->backend) == 0);
}

/* The rows asked for; the API gives all. */
static void filter_rows(const struct queue_options *o, json_t *answer)
{
    json_t *rows = json_object_get(answer, "queues");
    for (size_t i = json_array_size(rows); i > 0; i--) {
        if (!row_wanted(o, json_array_get(rows, i - 1))) {
            (void)json_array_remove(rows, i - 1);
        }
    }
}

static void age_text(const json_t *row, char *out, size_t out_bytes)
{
    const json_t *age = json_object_get(row, "oldest_ready_age_ms");
    if (!json_is_integer(age)) {
        (void)snprintf(out, out_bytes, "-");
        return;
    }
    long long seconds = json_integer_value(age) / 1000;
    if (seconds < 60) {
        (void)snprintf(out, out_bytes, "%llds", seconds);
    } else if (seconds < 3600) {
        (void)snprintf(out, out_bytes, "%lldm%02llds", seconds / 60, seconds % 60);
    } else {
        (void)snprintf(out, out_bytes, "%lldh%02lldm", seconds / 3600, seconds / 60 % 60);
    }
}

static const char *since_text(const json_t *row, const char *state)
{
    const char *text = status_text(json_object_get(row, "since"), state);
    return text[0] != '\0' ? text : "-";
}

static void print_depths(const json_t *answer)
{
    static const char *const heads[] = {"LANE",    "BACKEND", "READY",  "CLAIMED",  "STARTED",
                                        "DELAYED", "HELD",    "OLDEST", "NEXT DUE", "HELD SINCE"};
    static const char *const states[] = {"ready", "claimed", "started", "delayed", "held"};
    struct cli_table table;
    cli_table_init(&table, heads, sizeof heads / sizeof heads[0]);
    const json_t *rows = json_object_get(answer, "queues");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        cli_table_cell(&table, status_text(row, "lane"));
        cli_table_cell(&table, status_text(row, "backend"));
        for (size_t state = 0; state < sizeof states / sizeof states[0]; state++) {
            const json_t *batches = json_object_get(row, "batches");
            cli_table_number(&table, json_integer_value(json_object_get(batches, states[state])));
        }
        char age[40];
        age_text(row, age, sizeof age);
        cli_table_cell(&table, age);
        cli_table_cell(&table, since_text(row, "delayed"));
        cli_table_cell(&table, since_text(row, "held"));
    }
    cli_table_print(&table, stdout);
    cli_table_release(&table);
    (void)printf("\n%lld messages open, %lld bytes waiting\n",
                 (long long)json_integer_value(json_object_get(answer, "messages_open")),
                 (long long)json_integer_value(json_object_get(answer, "bytes")));
    long long dead = (long long)json_integer_value(json_object_get(answer, "dead_letters"));
    if (dead > 0) {
        (void)printf("%lld dead letters (heave queue show --dead)\n", dead);
    }
}

static void print_refused(const json_t *answer)
{
    const json_t *rows = json_object_get(answer, "lanes_refused");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        (void)printf("new messages of lane %s are put off: %s\n", status_text(row, "lane"),
                     status_text(row, "reason"));
    }
}

static int list_queue(const struct queue_options *o, struct client *client)
{
    json_t *answer = NULL;
    int code = status_get_json(&cli_queue_command, client, "/v1/admin/queue", &answer);
    if (code == CLI_DONE) {
        filter_rows(o, answer);
        if (o->common.json) {
            code = status_print_json(&cli_queue_command, answer);
        } else {
            print_depths(answer);
            print_refused(answer);
            code = cli_write(&cli_queue_command, SPAN_LIT(""));
        }
    }
    json_decref(answer);
    return code;
}

static int messages_path(const struct queue_options *o, struct buf *path)
{
    const struct {
        const char *name, *value;
    } rows[] = {
        {"state", o->all || o->dead ? "any" : "unfinished"},
        {"state", o->state},
        {"lane", o->lane},
        {"backend", o->backend},
        {"client", o->client},
        {"sender", o->sender},
        {"domain", o->domain},
        {"tag", o->tag},
        {"before", o->older_than},
    };
    int status = buf_append(path, o->dead ? SPAN_LIT("/v1/admin/dead-letters")
                                          : SPAN_LIT("/v1/admin/messages"));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && status == ERR_OK; i++) {
        if (rows[i].value != NULL) {
            status = client_query(path, rows[i].name, rows[i].value);
        }
    }
    return status;
}

static int show_messages(struct queue_options *o, struct client *client)
{
    struct buf path;
    buf_init(&path, 65536);
    const char *text = messages_path(o, &path) == ERR_OK ? buf_text(&path) : NULL;
    int code = text != NULL ? pages_fetch(&cli_queue_command, client, text, &o->pages)
                            : cli_fail(&cli_queue_command, CLI_USAGE, "the filters are too long");
    if (code == CLI_DONE) {
        code = pages_print(&cli_queue_command, &o->pages, o->common.json);
    }
    buf_release(&path);
    return code;
}

static int show_one(const struct queue_options *o, struct client *client, const char *id)
{
    json_t *message = NULL;
    int code = status_fetch(&cli_queue_command, client, id, &message);
    if (code == CLI_DONE) {
        code = status_print(&cli_queue_command, message, o->common.json);
    }
    json_decref(message);
    return code;
}

static int run_verb(struct queue_options *o, int count, char **words)
{
    bool is_list = count == 1 && strcmp(words[0], "list") == 0;
    bool is_show = count >= 1 && count <= 2 && strcmp(words[0], "show") == 0;
    if (!is_list && !is_show) {
        return cli_usage(
            &cli_queue_command,
            "say list, show [ID], hold, release, retry, cancel, move, purge or replay");
    }
    struct err err;
    struct client *client = NULL;
    if (client_open(&o->common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_queue_command, "%s", err.text);
    }
    int code = CLI_DONE;
    if (is_list) {
        code = list_queue(o, client);
    } else if (count == 1) {
        code = show_messages(o, client);
    } else {
        code = show_one(o, client, words[1]);
    }
    client_close(&client);
    return code;
}

static int run_queue(int argc, char **argv)
{
    enum {
        LANE = CLI_OPTION_OWN,
        BACKEND,
        CLIENT,
        STATE,
        SENDER,
        DOMAIN,
        TAG,
        OLDER_THAN,
        LIMIT,
        CURSOR,
        ALL,
        DEAD,
    };
    static const struct option options[] = {{"lane", required_argument, NULL, LANE},
                                            {"backend", required_argument, NULL, BACKEND},
                                            {"client", required_argument, NULL, CLIENT},
                                            {"state", required_argument, NULL, STATE},
                                            {"sender", required_argument, NULL, SENDER},
                                            {"domain", required_argument, NULL, DOMAIN},
                                            {"tag", required_argument, NULL, TAG},
                                            {"older-than", required_argument, NULL, OLDER_THAN},
                                            {"limit", required_argument, NULL, LIMIT},
                                            {"cursor", required_argument, NULL, CURSOR},
                                            {"all", no_argument, NULL, ALL},
                                            {"dead", no_argument, NULL, DEAD},
                                            CLI_COMMON_OPTIONS,
                                            {0}};
    if (queue_work_wanted(argc, argv)) {
        return queue_work_run(argc, argv);
    }
    struct queue_options o = {.pages.limit = LIMIT_DEFAULT};
    const char **const texts[] = {&o.lane,   &o.backend, &o.client, &o.state,
                                  &o.sender, &o.domain,  &o.tag,    &o.older_than};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_queue_command);
        }
        if (option >= LANE && option <= OLDER_THAN) {
            *texts[option - LANE] = optarg;
        } else if (option == CURSOR) {
            mem_free(o.pages.cursor);
            o.pages.cursor = mem_dup(span_of(optarg));
        } else if (option == ALL) {
            o.all = true;
        } else if (option == DEAD) {
            o.dead = true;
        } else if (option == LIMIT && !pages_limit(optarg, &o.pages)) {
            return cli_usage(&cli_queue_command, "--limit is 1 to %d", PAGES_LIMIT_MAX);
        } else if (option != LIMIT && !cli_common_take(&o.common, option, optarg)) {
            return cli_try_help(&cli_queue_command);
        }
    }
    int code = run_verb(&o, argc - optind, argv + optind);
    pages_release(&o.pages);
    return code;
}

const struct cli_command cli_queue_command = {
    .name = "queue",
    .summary = "look at the queue, hold, retry, cancel or move what waits",
    .usage =
        "Usage: heave queue list [--lane LANE] [--backend NAME] [-c FILE | --url URL] [--json]\n"
        "       heave queue show [FILTERS] [--all] [--limit N] [--cursor CURSOR] ...\n"
        "       heave queue show ID ...\n"
        "       heave queue show --dead [FILTERS] ...\n"
        "       heave queue hold|release|retry|cancel|move|purge|replay ID[/BATCH]... | SELECTOR... | --all\n"
        "                   [--reason TEXT] [--to BACKEND] [--reset] [--dry-run] [--yes] ...\n"
        "\n"
        "list shows how many batches wait in each lane for each backend, show the messages behind them (newest\n"
        "first) or all of one message. The other verbs work on what waits; they ask the admin listener, too:\n"
        "\n"
        "  hold     sets ready and delayed batches aside, with the reason\n"
        "  release  lets held ones go on: at once, or when send_at or their next try is due\n"
        "  retry    sends delayed and held ones now; --reset as if they had never been tried\n"
        "  cancel   ends what has not left; with --domain only for its recipients     (wants --yes)\n"
        "  move     gives batches to another backend, --to                            (wants --yes)\n"
        "  purge    cancels what waits and removes what has ended, its history too    (wants --yes)\n"
        "  replay   sends dead letters (failed, expired, unknown) again\n"
        "\n"
        "A batch that is being sent is left alone. Selectors are --lane, --backend, --client, --sender (also\n"
        "*@domain), --domain, --tag, --older-than and --state: ready, delayed, held, failed, expired, unknown,\n"
        "finished. What wants --yes only counts without it, and exits with 1; --dry-run counts, too, and exits\n"
        "with 0.\n"
        "\n"
        "      --lane LANE     only this lane\n"
        "      --backend NAME  only this backend\n"
        "      --client NAME   only this client's messages; this and what follows for show\n"
        "      --state STATE   with a batch (ready, held, ...) or, with --all, a recipient (failed, ...) in it\n"
        "      --sender ADDR   address in From or the reverse-path\n"
        "      --domain NAME   with a recipient there\n"
        "      --tag TAG       with this tag\n"
        "      --older-than T  accepted before a time (RFC 3339) or longer ago than 2d, 6h, 30m\n"
        "      --all           finished messages too; for the other verbs: everything they are for\n"
        "      --dead          dead letters: messages that can be replayed\n"
        "      --limit N       at most N messages, 1 to 10000 (50)\n"
        "      --cursor CURSOR go on where a former call ended\n"
        "  -c, --config FILE   find the gateway by its configuration\n"
        "      --url URL       where it is (also HEAVE_URL); the key is HEAVE_API_KEY\n"
        "      --ca-file FILE  certificates it is verified with\n"
        "      --json          the API's own objects\n"
        "\n"
        "Example: heave queue list -c heave.yaml --lane bulk\n",
    .run = run_queue,
};
