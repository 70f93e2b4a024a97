// What llama.cpp itself says it would allocate: for each line of settings on stdin, one JSON object on stdout.
//
// The devices are RPC servers with a CPU behind them (`ggml-rpc-server -H 127.0.0.1 -p 50101`, and 50102), which
// llama.cpp plans for as for GPUs. Models are loaded, and contexts made, without allocating anything.

#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "ggml.h"
#include "llama-ext.h"
#include "llama.h"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

static const char * const ENDPOINTS[] = {"127.0.0.1:50101", "127.0.0.1:50102"};
static const char * const EXPERTS     = "\\.ffn_(up|down|gate|gate_up)_(ch|)exps";

static ggml_type type_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && name == known) {
            return (ggml_type) i;
        }
    }
    throw std::runtime_error("no such type: " + name);
}

static llama_context_params context_params(const json & settings) {
    const int n_parallel = settings.at("n_parallel");

    llama_context_params params = llama_context_default_params();
    params.n_ctx           = settings.at("n_ctx");
    params.n_batch         = 2048;
    params.n_ubatch        = settings.at("n_ubatch");
    params.n_seq_max       = n_parallel;
    params.kv_unified      = settings.at("kv_unified");
    params.flash_attn_type = settings.at("flash_attn") ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k          = type_of(settings.at("type_k"));
    params.type_v          = type_of(settings.at("type_v"));
    params.n_outputs_max   = settings.at("n_outputs").is_null() ? n_parallel : settings.at("n_outputs").get<int>();
    params.swa_full        = false;
    params.n_threads       = 2;
    params.n_threads_batch = 2;
    return params;
}

// model, context and compute bytes of each device, the host last
static json figures_of(const llama_model * model, const llama_context * ctx) {
    const size_t n_devices = llama_model_n_devices(model);
    std::vector<llama_memory_breakdown_data> sums(n_devices + 1);

    for (const auto & [buft, bytes] : llama_get_memory_breakdown(ctx)) {
        size_t at = n_devices;
        if (!ggml_backend_buft_is_host(buft)) {
            for (at = 0; at < n_devices; at++) {
                if (llama_model_get_device(model, at) == ggml_backend_buft_get_device(buft)) {
                    break;
                }
            }
        }
        sums[at].model   += bytes.model;
        sums[at].context += bytes.context;
        sums[at].compute += bytes.compute;
    }

    json figures = json::array();
    for (const auto & sum : sums) {
        figures.push_back({sum.model, sum.context, sum.compute});
    }
    return figures;
}

static json measure(const json & settings, const std::vector<ggml_backend_dev_t> & all) {
    const int n_devices = settings.at("n_devices");

    std::vector<ggml_backend_dev_t> devices(all.begin(), all.begin() + n_devices);
    devices.push_back(nullptr);

    std::vector<float> split(llama_max_devices(), 0.0f);
    for (int i = 0; i < n_devices; i++) {
        split[i] = settings.at("tensor_split").is_null() ? 1.0f : settings.at("tensor_split").at(i).get<float>();
    }

    const llama_model_tensor_buft_override overrides[] = {{EXPERTS, ggml_backend_cpu_buffer_type()}, {nullptr, nullptr}};

    llama_model_params params = llama_model_default_params();
    params.devices        = devices.data();
    params.n_gpu_layers   = settings.at("n_gpu_layers").is_null() ? -1 : settings.at("n_gpu_layers").get<int>();
    params.tensor_split   = split.data();
    params.use_extra_bufts = false;
    params.no_alloc       = true;
    params.load_mode      = LLAMA_LOAD_MODE_NONE;
    if (settings.at("cpu_moe")) {
        params.tensor_buft_overrides = overrides;
    }

    llama_model * model = llama_model_load_from_file(settings.at("path").get<std::string>().c_str(), params);
    if (!model) {
        return "no model";
    }
    llama_context * ctx = llama_init_from_model(model, context_params(settings));
    const json figures = ctx ? figures_of(model, ctx) : json("no context");
    llama_free(ctx);
    llama_model_free(model);
    return figures;
}

int main() {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();

    std::vector<ggml_backend_dev_t> devices;
    for (const char * endpoint : ENDPOINTS) {
        ggml_backend_reg_t reg = ggml_backend_rpc_add_server(endpoint);
        if (!reg) {
            fprintf(stderr, "no RPC server at %s\n", endpoint);
            return 1;
        }
        ggml_backend_register(reg);
        devices.push_back(ggml_backend_reg_dev_get(reg, 0));
    }

    for (std::string line; std::getline(std::cin, line);) {
        std::cout << measure(json::parse(line), devices).dump() << std::endl;
    }
}
