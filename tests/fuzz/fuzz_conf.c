/* Fuzzer of the configuration: any bytes load, or are refused with at least one mistake; what loads
 * can be shown. */
#include "gateway/conf.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void show(const struct conf *conf)
{
    struct buf text;
    buf_init(&text, (size_t)64 << 20);
    ASSERT(conf_print_effective(conf, false, &text) == ERR_OK);
    buf_reset(&text);
    ASSERT(conf_print_effective(conf, true, &text) == ERR_OK);
    buf_reset(&text);
    ASSERT(conf_restart_needed(conf, conf, &text) == ERR_OK);
    ASSERT(buf_len(&text) == 0);
    buf_release(&text);
}

static void show_report(const struct conf_report *report)
{
    struct buf text;
    buf_init(&text, (size_t)64 << 20);
    ASSERT(conf_report_print(report, &text) == ERR_OK);
    ASSERT(buf_len(&text) > 0);
    buf_reset(&text);
    ASSERT(conf_report_print_json(report, &text) == ERR_OK);
    buf_release(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const environment[] = {"A=value", "B=${A}", "HEAVE_QUEUE__SHARDS=2",
                                              "HEAVE_ROLES=dispatch", NULL};
    struct conf *conf = NULL;
    struct conf_report report;
    conf_report_init(&report);
    int status = conf_load_bytes("/nonexistent/heave.yaml", span_make((const char *)data, size),
                                 environment, &conf, &report);
    if (status == ERR_OK) {
        ASSERT(report.count == 0);
        show(conf);
    } else {
        ASSERT(report.count > 0);
        show_report(&report);
    }
    conf_unref(&conf);
    conf_report_release(&report);
    return 0;
}
