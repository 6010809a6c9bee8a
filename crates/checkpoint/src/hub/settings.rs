//! Where the hub and its cache are. The names are those of Hugging Face's own tools.

use std::path::PathBuf;

/// How to reach a hub, and where to keep what comes from it.
#[derive(Clone)]
pub struct HubSettings {
    /// Address, without a slash at the end.
    pub endpoint: String,
    /// Folder of all cached repositories.
    pub cache: PathBuf,
    /// Access token, for models that are not public.
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
}

impl HubSettings {
    /// Settings from environment variables, which the caller looks up: `HF_ENDPOINT`,
    /// `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, and for the
    /// default places `XDG_CACHE_HOME` and `HOME`. A token saved by Hugging Face's login is used.
    pub fn from_vars(variable: impl Fn(&str) -> Option<String>) -> HubSettings {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let home = || {
            set("HOME")
                .or_else(|| set("USERPROFILE"))
                .map_or(PathBuf::from("."), PathBuf::from)
        };
        let hf_home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from);
            caches
                .unwrap_or_else(|| home().join(".cache"))
                .join("huggingface")
        });
        let token_file = set("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .unwrap_or(hf_home.join("token"));
        let saved_token = || std::fs::read_to_string(token_file).ok();
        let token = set("HF_TOKEN").or_else(saved_token);
        let endpoint = set("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_owned());
        HubSettings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: set("HF_HUB_CACHE")
                .map(PathBuf::from)
                .unwrap_or(hf_home.join("hub")),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
        }
    }
}

/// Shows all but the token.
impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> HubSettings {
        let values: Vec<(String, String)> = values
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        HubSettings::from_vars(|name| {
            values
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        let home = ("HOME", "/h");
        assert_eq!(
            settings(&[home]).cache,
            PathBuf::from("/h/.cache/huggingface/hub")
        );
        assert_eq!(
            settings(&[home, ("XDG_CACHE_HOME", "/x")]).cache,
            PathBuf::from("/x/huggingface/hub")
        );
        assert_eq!(
            settings(&[home, ("HF_HOME", "/f")]).cache,
            PathBuf::from("/f/hub")
        );
        assert_eq!(
            settings(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).cache,
            PathBuf::from("/c")
        );
        assert_eq!(settings(&[home]).endpoint, "https://huggingface.co");
        let mirror = settings(&[
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(mirror.endpoint, "http://127.0.0.1:9");
        assert!(mirror.offline);
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_login_and_are_not_shown() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::write(dir.path().join("token"), "hf_saved\n").unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        assert_eq!(settings(&[home]).token.as_deref(), Some("hf_saved"));
        let given = settings(&[home, ("HF_TOKEN", "hf_given")]);
        assert_eq!(given.token.as_deref(), Some("hf_given"));
        assert!(!format!("{given:?}").contains("hf_given"));
        assert_eq!(settings(&[("HF_HOME", "/nowhere")]).token, None);
    }
}
