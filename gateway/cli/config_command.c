#include "gateway/cli/cli.h"

#include "gateway/base/tls.h"
#include "gateway/conf.h"
#include "gateway/policy.h"
#include "gateway/redis_check.h"

#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

/* `heave check` and `heave config`: what a configuration file says, and whether it can be used. */

#define OUTPUT_MAX ((size_t)64 << 20)

/* ---- check ---- */

static const char *topology_name(enum queue_topology topology)
{
    switch (topology) {
    case QUEUE_STANDALONE:
        return "standalone";
    case QUEUE_SENTINEL:
        return "sentinel";
    case QUEUE_CLUSTER:
        return "cluster";
    }
    UNREACHABLE();
}

/* What was asked of an external Redis and what it said, line by line. */
static json_t *redis_json(const struct conf *conf, struct span said, bool reached)
{
    json_t *lines = json_array();
    while (said.len > 0) {
        struct span line = span_cut(&said, '\n');
        (void)json_array_append_new(lines, json_stringn(line.data, line.len));
    }
    const struct queue_conf *queue = &conf->queue.handle;
    return json_pack("{s:b, s:s, s:s, s:o}", "reached", reached, "topology",
                     topology_name(queue->topology), "durability",
                     queue_durability_name(queue->durability), "said", lines);
}

/* The report with what Redis said. */
static int print_json(const struct conf_report *report, json_t *redis, bool reached)
{
    struct buf text;
    buf_init(&text, OUTPUT_MAX);
    json_t *all = NULL;
    if (conf_report_print_json(report, &text) == ERR_OK) {
        all = json_loadb(buf_span(&text).data, buf_len(&text), 0, NULL);
    }
    buf_release(&text);
    if (redis != NULL) {
        (void)json_object_set_new(all, "redis", redis);
    }
    if (!reached) {
        (void)json_object_set_new(all, "ok", json_false());
    }
    bool dumped = all != NULL && json_dumpf(all, stdout, JSON_INDENT(2)) == 0;
    json_decref(all);
    if (!dumped) {
        return cli_fail(&cli_check_command, CLI_REFUSED, "the report could not be written");
    }
    int written = cli_write(&cli_check_command, SPAN_LIT("\n"));
    int code = report->count == 0 ? CLI_DONE : CLI_REFUSED;
    return written != CLI_DONE ? written : code;
}

static int print_report(const struct conf_report *report)
{
    struct buf text;
    buf_init(&text, OUTPUT_MAX);
    int code = report->count == 0 ? CLI_DONE : CLI_REFUSED;
    if (conf_report_print(report, &text) != ERR_OK) {
        code = cli_fail(&cli_check_command, CLI_REFUSED, "the report is too large");
    } else if (report->count > 0) {
        (void)fwrite(buf_span(&text).data, 1, buf_len(&text), stderr);
        (void)fprintf(stderr, "%s: %zu mistake%s\n", report->file, report->count,
                      report->count == 1 ? "" : "s");
    }
    buf_release(&text);
    return code;
}

/* What only shows when the values are used: certificates that do not match, hashes and networks the
 * policy refuses. */
static void check_use(const struct conf *conf, struct conf_report *report)
{
    struct err err;
    struct policy *policy = NULL;
    if (policy_new(conf->clients, conf->client_count, &policy, &err) != ERR_OK) {
        conf_report_add(report, conf, "clients", err.text);
    }
    policy_unref(&policy);
    if (conf->tls.cert_file == NULL) {
        return;
    }
    const struct tls_server_conf server = {
        .cert_file = conf->tls.cert_file,
        .key_file = conf->tls.key_file,
        .min_version = conf->tls.min_version,
    };
    struct tls_context *context = NULL;
    if (tls_server_new(&server, &context, &err) != ERR_OK) {
        conf_report_add(report, conf, "tls.cert_file", err.text);
    }
    tls_context_unref(&context);
}

static void warn_open_key(const char *what, const char *file)
{
    struct stat facts;
    if (file != NULL && stat(file, &facts) == 0 && (facts.st_mode & (S_IRGRP | S_IROTH)) != 0) {
        (void)cli_fail(&cli_check_command, 0,
                       "warning: the %s %s can be read by others (chmod 600)", what, file);
    }
}

/* Asks the Redis of a good file whether it will do. Lines for a person go to `lines`; what it will
 * not do is a mistake of the file. CLI_UNREACHABLE: nobody answered. */
static int check_redis_of(const struct conf *conf, struct conf_report *report, struct buf *lines)
{
    struct err err;
    int status = redis_check(conf, lines, &err);
    if (status == ERR_UNAVAILABLE) {
        return cli_fail(&cli_check_command, CLI_UNREACHABLE, "Redis could not be reached: %s",
                        err.text);
    }
    if (status != ERR_OK) {
        conf_report_add(report, conf, "queue.redis", err.text);
    }
    return CLI_DONE;
}

static void print_good(const struct conf *conf, const char *file, struct span redis)
{
    (void)printf("%s: good: %zu listeners, %zu backends, %zu routes, %zu clients\n", file,
                 conf->listener_count, conf->backend_count, conf->route.rule_count,
                 conf->client_count);
    while (redis.len > 0) {
        struct span line = span_cut(&redis, '\n');
        (void)printf("redis: %.*s\n", SPAN_FMT(line));
    }
}

static int check_file(const char *file, bool json, bool offline)
{
    struct conf *conf = NULL;
    struct conf_report report;
    struct buf lines;
    int reached = CLI_DONE;
    buf_init(&lines, OUTPUT_MAX);
    conf_report_init(&report);
    if (conf_load(file, &conf, &report) == ERR_OK) {
        check_use(conf, &report);
        warn_open_key("private key", conf->tls.key_file);
        warn_open_key("private key", conf->queue.key_file);
        warn_open_key("encryption key file", conf->queue.encryption_key_file);
    }
    bool asked = report.count == 0 && !offline;
    if (asked) {
        reached = check_redis_of(conf, &report, &lines);
    }
    bool external = asked && conf->queue.kind != CONF_QUEUE_EMBEDDED;
    int code = CLI_DONE;
    if (json) {
        json_t *redis = external ? redis_json(conf, buf_span(&lines), reached == CLI_DONE) : NULL;
        code = print_json(&report, redis, reached == CLI_DONE);
    } else {
        code = print_report(&report);
    }
    if (code == CLI_DONE && reached == CLI_DONE && !json) {
        print_good(conf, file, buf_span(&lines));
    }
    buf_release(&lines);
    conf_unref(&conf);
    conf_report_release(&report);
    return code != CLI_DONE ? code : reached;
}

static int run_check(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"offline", no_argument, NULL, CLI_OPTION_OWN},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct cli_common common = {0};
    bool offline = false;
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_check_command);
        }
        if (option == CLI_OPTION_OWN) {
            offline = true;
            continue;
        }
        if (!cli_common_take(&common, option, optarg)) {
            return cli_try_help(&cli_check_command);
        }
    }
    if (common.config == NULL && optind + 1 == argc) {
        common.config = argv[optind++];
    }
    if (common.config == NULL || optind < argc) {
        return cli_usage(&cli_check_command, "give one file with -c FILE");
    }
    return check_file(common.config, common.json, offline);
}

const struct cli_command cli_check_command = {
    .name = "check",
    .summary = "validate a configuration",
    .usage =
        "Usage: heave check -c FILE [--offline] [--json]\n"
        "\n"
        "Reads a configuration as `heave serve` would and reports every mistake with file, line, column and what\n"
        "was expected. When the file is good and names an external Redis, that is asked for its version, role,\n"
        "settings and replicas, and what it promises is said; what it cannot promise is a mistake of queue.redis.\n"
        "Exit code 0 when all can be used, 1 when not, 3 when Redis could not be reached.\n"
        "\n"
        "  -c, --config FILE   the configuration\n"
        "      --offline       the file alone: connects to nothing\n"
        "      --json          the report as JSON, with what an external Redis said under \"redis\"\n"
        "\n"
        "Example: heave check -c heave.yaml && systemctl reload heave\n",
    .run = run_check,
};

/* ---- config ---- */

enum config_page {
    PAGE_NONE,
    PAGE_EFFECTIVE,
    PAGE_REFERENCE,
    PAGE_SCHEMA,
};

static int print_effective(const char *file, bool json, struct buf *out)
{
    struct conf *conf = NULL;
    struct conf_report report;
    conf_report_init(&report);
    int status = conf_load(file, &conf, &report);
    if (status == ERR_OK) {
        status = conf_print_effective(conf, json, out);
    } else {
        struct buf text;
        buf_init(&text, OUTPUT_MAX);
        if (conf_report_print(&report, &text) == ERR_OK) {
            (void)fwrite(buf_span(&text).data, 1, buf_len(&text), stderr);
        }
        buf_release(&text);
    }
    conf_unref(&conf);
    conf_report_release(&report);
    return status;
}

static int print_page(enum config_page page, const struct cli_common *common)
{
    struct buf text;
    buf_init(&text, OUTPUT_MAX);
    int status = ERR_OK;
    switch (page) {
    case PAGE_NONE:
    case PAGE_EFFECTIVE:
        status = print_effective(common->config, common->json, &text);
        break;
    case PAGE_REFERENCE:
        status = conf_print_reference(&text);
        break;
    case PAGE_SCHEMA:
        status = conf_print_schema(&text);
        break;
    }
    int code = status == ERR_OK ? cli_write(&cli_config_command, buf_span(&text)) : CLI_REFUSED;
    buf_release(&text);
    return code;
}

static int run_config(int argc, char **argv)
{
    static const struct option options[] = {{"effective", no_argument, NULL, CLI_OPTION_OWN},
                                            {"reference", no_argument, NULL, CLI_OPTION_OWN + 1},
                                            {"schema", no_argument, NULL, CLI_OPTION_OWN + 2},
                                            {"config", required_argument, NULL, 'c'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct cli_common common = {0};
    enum config_page page = PAGE_NONE;
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_config_command);
        }
        if (option >= CLI_OPTION_OWN) {
            if (page != PAGE_NONE) {
                return cli_usage(&cli_config_command,
                                 "one of --effective, --reference and --schema at a time");
            }
            page = (enum config_page)(PAGE_EFFECTIVE + option - CLI_OPTION_OWN);
        } else if (!cli_common_take(&common, option, optarg)) {
            return cli_try_help(&cli_config_command);
        }
    }
    if (optind < argc) {
        return cli_usage(&cli_config_command, "\"%s\" is not expected here", argv[optind]);
    }
    if (page <= PAGE_EFFECTIVE && common.config == NULL) {
        return cli_usage(&cli_config_command, "--effective needs -c FILE");
    }
    return print_page(page, &common);
}

const struct cli_command cli_config_command = {
    .name = "config",
    .summary = "show effective values, the reference, or a JSON Schema",
    .usage =
        "Usage: heave config [--effective] -c FILE [--json]\n"
        "       heave config --reference\n"
        "       heave config --schema\n"
        "\n"
        "  --effective         every option in force with its value and where it comes from; secrets as ***\n"
        "  --reference         all options as a Markdown page\n"
        "  --schema            a JSON Schema (2020-12) for editors\n"
        "  -c, --config FILE   the configuration\n"
        "      --json          effective values as JSON\n"
        "\n"
        "Example: heave config --effective -c heave.yaml\n",
    .run = run_config,
};
