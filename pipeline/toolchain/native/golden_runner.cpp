// Decodes golden prompts with a GGUF model; the same source on every target, and all that a board needs to be checked.
//
//   golden-runner --model MODEL.gguf --requests REQUESTS.json --out DIR [--context N] [--threads N]
//                 [--reference LOGITS.f32] [--logits] [--no-answers] [--times N]
//
// Rules: greedy; KV cache f32, flash attention off, one sequence, a fresh context for each prompt and each pass: all that
// affects tokens is fixed. Every decode of an answer stands between two marker system calls, write(2) to descriptors that
// do not exist, by which an emulator counts its instructions. Results appear whole (written beside and renamed) or not.
//
// REQUESTS.json: {"requests": [{"id", "prompt": [ids], "forced": [ids], "max_tokens"}]}; `forced` is a whole sequence whose
// next-token logits are computed without sampling. LOGITS.f32 holds such logits of another run, little-endian f32
// [positions, vocabulary], all requests one after the other.
//
// DIR/run.json: {"system", "vocabulary", "peak_rss_bytes", "answers": [{"id", "tokens", "text", "ttft_ns", "step_ns",
// "margins", "kl", "nll", "reference_nll"}], "repeats": [[[ids] a request] a further pass]}; tokens are the generated ids
// without the end token, margins the gap of the two highest logits at each generated token (the end token included), kl
// nats of reference over this run at each forced position, nll the negative log-likelihood of each forced token but the
// first. DIR/forced.f32 and DIR/generated.f32: the logits at forced and at generated positions, where asked for.

#include "llama.h"

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::json;
using Ids = std::vector<llama_token>;

namespace {

constexpr int kMarkerBegin = 100001;  // descriptors no process has open
constexpr int kMarkerEnd = 100002;
constexpr int kRows = 256;  // forced positions decoded at a time: bounds memory at large vocabularies

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::string g_log_tail;

void keep_log(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN) g_log_tail = text;
}

void mark(int descriptor) {
    const ssize_t ignored = write(descriptor, "", 0);
    (void) ignored;
}

int64_t now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

struct Options {
    std::string model, requests, out, reference;
    int context = 512, threads = 1, times = 1;
    bool logits = false, answers = true;
};

struct Request {
    std::string id;
    Ids prompt, forced;
    int max_tokens = 0;
};

// A file of another run's logits, mapped.
class Reference {
  public:
    Reference(const std::string & path, size_t rows, size_t vocabulary) : vocabulary_(vocabulary) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat info {};
        if (file < 0 || fstat(file, &info) != 0) throw Failure(path + ": cannot be read");
        size_ = rows * vocabulary * sizeof(float);
        if (static_cast<size_t>(info.st_size) != size_) {
            close(file);
            throw Failure(path + ": is not of these requests and this vocabulary");
        }
        if (size_ != 0) data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        close(file);
        if (data_ == MAP_FAILED) throw Failure(path + ": cannot be mapped");
    }
    Reference(const Reference &) = delete;
    Reference & operator=(const Reference &) = delete;
    ~Reference() {
        if (data_ != nullptr && data_ != MAP_FAILED) munmap(data_, size_);
    }
    const float * row(size_t index) const { return static_cast<const float *>(data_) + index * vocabulary_; }

  private:
    void * data_ = nullptr;
    size_t size_ = 0, vocabulary_;
};

// A file written piece by piece, under its final name only when complete; nothing where it is not wanted.
class Output {
  public:
    Output(const std::string & path, bool wanted) : path_(path), partial_(path + ".partial") {
        if (wanted && (file_ = std::fopen(partial_.c_str(), "wb")) == nullptr) throw Failure(path + ": cannot be written");
    }
    Output(const Output &) = delete;
    Output & operator=(const Output &) = delete;
    ~Output() {
        if (file_ != nullptr) std::fclose(file_);
    }
    void add(const float * row, size_t count) { add_bytes(row, count * sizeof(float)); }
    void add_bytes(const void * data, size_t size) {
        if (file_ != nullptr && std::fwrite(data, 1, size, file_) != size) throw Failure(path_ + ": cannot be written");
    }
    void finish() {
        if (file_ == nullptr) return;
        const bool kept = std::fflush(file_) == 0 && fsync(fileno(file_)) == 0;
        std::fclose(file_);
        file_ = nullptr;
        if (!kept || std::rename(partial_.c_str(), path_.c_str()) != 0) throw Failure(path_ + ": cannot be written");
    }

  private:
    std::string path_, partial_;
    std::FILE * file_ = nullptr;
};

std::vector<double> log_softmax(const float * logits, size_t count) {
    const double highest = *std::max_element(logits, logits + count);
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += std::exp(logits[i] - highest);
    const double shift = highest + std::log(sum);
    std::vector<double> found(count);
    for (size_t i = 0; i < count; i++) found[i] = logits[i] - shift;
    return found;
}

double divergence(const std::vector<double> & reference, const std::vector<double> & own) {
    double sum = 0;
    for (size_t i = 0; i < own.size(); i++) sum += std::exp(reference[i]) * (reference[i] - own[i]);
    return sum;
}

// The most likely token, the first of equals, and its lead over the next.
std::pair<llama_token, float> best(const float * logits, int count) {
    int first = 0;
    for (int i = 1; i < count; i++) if (logits[i] > logits[first]) first = i;
    float second = -INFINITY;
    for (int i = 0; i < count; i++) if (i != first) second = std::max(second, logits[i]);
    return {first, logits[first] - second};
}

struct Generated {
    Ids tokens;
    std::vector<int64_t> step_ns;
    std::vector<float> margins;
    int64_t ttft_ns = 0;
};

class Runner {
  public:
    explicit Runner(const Options & options) : options_(options) {
        llama_log_set(keep_log, nullptr);
        llama_backend_init();
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        model_.reset(llama_model_load_from_file(options.model.c_str(), params));
        if (!model_) throw Failure(options.model + ": cannot be loaded: " + g_log_tail);
        vocab_ = llama_model_get_vocab(model_.get());
        size_ = llama_vocab_n_tokens(vocab_);
    }

    int vocabulary() const { return size_; }

    Generated greedy(const Request & request, Output & rows) const {
        require_fit(request, request.prompt.size() + request.max_tokens);
        Generated found;
        const Context context = fresh();
        Ids following = request.prompt;
        int64_t before = now_ns();
        while (static_cast<int>(found.tokens.size()) < request.max_tokens) {
            mark(kMarkerBegin);
            const int status = llama_decode(context.get(), llama_batch_get_one(following.data(), static_cast<int32_t>(following.size())));
            mark(kMarkerEnd);
            require(status);
            const float * logits = llama_get_logits_ith(context.get(), -1);
            const auto [token, margin] = best(logits, size_);
            const int64_t after = now_ns();
            if (found.margins.empty()) found.ttft_ns = after - before;
            else if (!llama_vocab_is_eog(vocab_, token)) found.step_ns.push_back(after - before);
            rows.add(logits, size_);
            before = now_ns();
            found.margins.push_back(margin);
            if (llama_vocab_is_eog(vocab_, token)) break;
            found.tokens.push_back(token);
            following.assign(1, token);
        }
        return found;
    }

    // Calls `each` with every forced position and its logits.
    void force(const Request & request, const std::function<void(size_t, const float *)> & each) const {
        if (request.forced.empty()) return;
        require_fit(request, request.forced.size());
        const Context context = fresh();
        llama_batch batch = llama_batch_init(kRows, 0, 1);
        const std::unique_ptr<llama_batch, void (*)(llama_batch *)> owner(&batch, [](llama_batch * b) { llama_batch_free(*b); });
        for (size_t start = 0; start < request.forced.size(); start += kRows) {
            batch.n_tokens = static_cast<int32_t>(std::min<size_t>(kRows, request.forced.size() - start));
            for (int i = 0; i < batch.n_tokens; i++) {
                batch.token[i] = request.forced[start + i];
                batch.pos[i] = static_cast<llama_pos>(start + i);
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = 0;
                batch.logits[i] = 1;
            }
            require(llama_decode(context.get(), batch));
            for (int i = 0; i < batch.n_tokens; i++) each(start + i, llama_get_logits_ith(context.get(), i));
        }
    }

    std::string text(const Ids & ids) const {
        std::string found(64, '\0');
        for (;;) {
            const int count = llama_detokenize(vocab_, ids.data(), static_cast<int32_t>(ids.size()), found.data(), static_cast<int32_t>(found.size()), false, false);
            if (count >= 0) return found.substr(0, count);
            found.resize(-count);
        }
    }

  private:
    struct FreeModel { void operator()(llama_model * m) const { llama_model_free(m); } };
    struct FreeContext { void operator()(llama_context * c) const { llama_free(c); } };
    using Context = std::unique_ptr<llama_context, FreeContext>;

    Context fresh() const {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = options_.context;
        params.n_seq_max = 1;
        params.n_threads = params.n_threads_batch = options_.threads;
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.no_perf = true;
        Context context(llama_init_from_model(model_.get(), params));
        if (!context) throw Failure("no context of " + std::to_string(options_.context) + " tokens: " + g_log_tail);
        return context;
    }

    void require_fit(const Request & request, size_t tokens) const {
        if (request.prompt.empty()) throw Failure(request.id + ": there are no tokens to decode");
        if (tokens > static_cast<size_t>(options_.context)) {
            throw Failure(request.id + ": " + std::to_string(tokens) + " tokens do not fit a context of " + std::to_string(options_.context));
        }
        for (const Ids * ids : {&request.prompt, &request.forced}) {
            for (const llama_token token : *ids) {
                if (token < 0 || token >= size_) throw Failure(request.id + ": token " + std::to_string(token) + " is not in the vocabulary");
            }
        }
    }

    static void require(int status) {
        if (status != 0) throw Failure("llama.cpp cannot decode (status " + std::to_string(status) + "): " + g_log_tail);
    }

    const Options & options_;
    std::unique_ptr<llama_model, FreeModel> model_;
    const llama_vocab * vocab_ = nullptr;
    int size_ = 0;
};

std::vector<Request> read_requests(const std::string & path) {
    std::ifstream file(path);
    if (!file) throw Failure(path + ": cannot be read");
    const json document = json::parse(file);
    std::vector<Request> found;
    for (const json & entry : document.at("requests")) {
        found.push_back({entry.at("id"), entry.at("prompt"), entry.at("forced"), entry.at("max_tokens")});
    }
    return found;
}

void write_whole(const std::string & path, const std::string & data) {
    Output file(path, true);
    file.add_bytes(data.data(), data.size());
    file.finish();
}

size_t peak_rss_bytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

void run(const Options & options) {
    const std::vector<Request> requests = read_requests(options.requests);
    mkdir(options.out.c_str(), 0755);
    const Runner runner(options);
    const size_t vocabulary = runner.vocabulary();
    json answers = json::array(), repeats = json::array();

    Output generated(options.out + "/generated.f32", options.logits);
    Output none("", false);
    for (int pass = 0; pass < options.times; pass++) {
        json tokens = json::array();
        for (const Request & request : requests) {
            const Generated found = options.answers ? runner.greedy(request, pass == 0 ? generated : none) : Generated{};
            tokens.push_back(found.tokens);
            if (pass != 0) continue;
            answers.push_back({{"id", request.id}, {"tokens", found.tokens}, {"text", runner.text(found.tokens)},
                               {"ttft_ns", found.ttft_ns}, {"step_ns", found.step_ns}, {"margins", found.margins}});
        }
        if (pass != 0) repeats.push_back(tokens);
    }
    generated.finish();
    const size_t peak = peak_rss_bytes();  // before the forced logits, which only checks need

    size_t rows = 0;
    for (const Request & request : requests) rows += request.forced.size();
    std::unique_ptr<Reference> reference;
    if (!options.reference.empty()) reference = std::make_unique<Reference>(options.reference, rows, vocabulary);
    Output forced(options.out + "/forced.f32", options.logits);
    size_t at = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        const Ids & ids = requests[i].forced;
        std::vector<double> kl, nll, reference_nll;
        if (options.logits || reference) {
            runner.force(requests[i], [&](size_t position, const float * logits) {
                forced.add(logits, vocabulary);
                if (!reference) return;
                const std::vector<double> own = log_softmax(logits, vocabulary), theirs = log_softmax(reference->row(at + position), vocabulary);
                kl.push_back(divergence(theirs, own));
                if (position + 1 == ids.size()) return;
                nll.push_back(-own[ids[position + 1]]);
                reference_nll.push_back(-theirs[ids[position + 1]]);
            });
        }
        at += ids.size();
        answers[i].update({{"kl", kl}, {"nll", nll}, {"reference_nll", reference_nll}});
    }
    forced.finish();
    const json found = {{"system", llama_print_system_info()}, {"vocabulary", vocabulary}, {"peak_rss_bytes", peak},
                        {"answers", answers}, {"repeats", repeats}};
    write_whole(options.out + "/run.json", found.dump(-1, ' ', false, json::error_handler_t::replace));
}

Options parse(int argc, char ** argv) {
    Options options;
    const auto value = [&](int & i) -> std::string {
        if (i + 1 >= argc) throw Failure(std::string(argv[i]) + " needs a value");
        return argv[++i];
    };
    for (int i = 1; i < argc; i++) {
        const std::string name = argv[i];
        if (name == "--model") options.model = value(i);
        else if (name == "--requests") options.requests = value(i);
        else if (name == "--out") options.out = value(i);
        else if (name == "--reference") options.reference = value(i);
        else if (name == "--context") options.context = std::stoi(value(i));
        else if (name == "--threads") options.threads = std::stoi(value(i));
        else if (name == "--times") options.times = std::stoi(value(i));
        else if (name == "--logits") options.logits = true;
        else if (name == "--no-answers") options.answers = false;
        else throw Failure("unknown argument " + name);
    }
    if (options.model.empty() || options.requests.empty() || options.out.empty()) {
        throw Failure("usage: golden-runner --model MODEL.gguf --requests REQUESTS.json --out DIR [--context N] [--threads N]"
                      " [--reference LOGITS.f32] [--logits] [--no-answers] [--times N]");
    }
    if (options.context < 1 || options.threads < 1 || options.times < 1) throw Failure("--context, --threads and --times are at least 1");
    return options;
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        const Options options = parse(argc, argv);
        run(options);
        return 0;
    } catch (const std::exception & e) {  // the outermost: whatever it is, the starter must hear of it
        std::fprintf(stderr, "golden-runner: %s\n", e.what());
        return 1;
    }
}
